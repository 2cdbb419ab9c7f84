"""Attention over a batch that the rest of the program sees as one long row per probe.

The program runs the decoder on hidden states ``[P, B*T, D]``: one batch entry per probe, the B
rows of tokens laid end to end. Linear layers and the column-compact product then need no reshape
at all, which XNNPACK could not follow for symbolic sizes. Only attention must know where a row
ends; it is plugged in through transformers' ``AttentionInterface``, so it serves every
architecture that uses the interface, and no mask of transformers' own is built.

Grouped queries are folded into the row axis (``[P*KV*B, G*T, d]``) instead of repeating keys and
values: no copy of either, one batched product for all heads of a group.

Rows may stand behind a prefix, the same for all, whose keys and values come as inputs. In the order
above the queries of all rows of a probe and head are one matrix, ``[P*KV, B*G*T, d]``: one product
reads the prefix for all of them. It is not joined with the rows' own keys: two products make the
scores, two more the output, and scores alone are joined, for one softmax.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..quiet import quiet

with quiet():  # importing it imports torchao, which reports kernels for GPUs that are not there
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "seedtune_rows"
BLOCKED = -1e9
"""Added to a score that is not to be seen; finite, so that no kernel sees inf - inf."""
Prefix = tuple[torch.Tensor, torch.Tensor]
"""Keys float32 ``[P, KV, d, L]`` and values ``[P, KV, L, d]`` of one block."""


class RowLayout:
    """Sizes of the running forward pass, and its masks, made once per pass and window."""

    def __init__(self) -> None:
        self.rows: int = 1
        self.length: int = 1
        self.shapes: list[tuple[int, int]] = []
        """``(KV, d)`` of the keys and values of each block that the pass has reached."""
        self._kept: torch.Tensor | None = None
        self._own: list[torch.Tensor] = []
        self._prefix: Sequence[Prefix] = ()
        self._masks: dict[tuple[int | None, int, bool], torch.Tensor] = {}

    def begin(self, rows: int, length: int, prefix: Sequence[Prefix] = ()) -> None:
        """Start a pass over ``rows`` rows of ``length`` tokens (integers or symbolic sizes), behind
        a ``prefix`` of each block."""
        self.rows, self.length = rows, length
        self._prefix = prefix
        self.shapes.clear()
        self._masks.clear()

    def keep(self, positions: torch.Tensor) -> None:
        """Keep the next pass's keys and values at ``positions``, int64 ``[Q]``."""
        self._kept = positions

    def take(self) -> list[torch.Tensor]:
        """What the last pass kept, block by block keys ``[P, KV, d, Q]`` and values
        ``[P, KV, Q, d]``; forgets it."""
        own, self._own, self._kept = self._own, [], None
        return own

    def enter(
        self, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Prefix | None]:
        """The next block's own keys and values ``[P, KV, B*T, d]``, as given, and its prefix."""
        block = len(self.shapes)
        self.shapes.append((key.shape[1], key.shape[3]))
        if self._kept is not None:
            packed = key.shape[2]
            keys, values = (each.index_select(2, self._kept) for each in (key, value))
            self._own += [contiguous(keys, 0, 1, 3, 2), values]
            # ONNX Runtime leaves what no later step needs to the end, and would hold the keys and
            # values of all blocks until then. So what is kept is put behind them and cut off.
            key = torch.cat([key, keys], dim=2)[:, :, :packed]
            value = torch.cat([value, values], dim=2)[:, :, :packed]
        return key, value, self._prefix[block] if self._prefix else None

    def mask(self, window: int | None, groups: int) -> torch.Tensor:
        """Additive causal mask float32 ``[1, groups * T, T]``, of ``window`` tokens if given."""
        place = torch.arange(self.length)
        return self._mask(place[:, None] - place[None, :], window, groups, False)

    def prefix_mask(self, window: int, groups: int, tokens: int) -> torch.Tensor:
        """Additive mask float32 ``[1, groups * T, L]`` of a prefix of so many ``tokens``."""
        place = torch.arange(tokens, tokens + self.length)
        return self._mask(place[:, None] - torch.arange(tokens)[None, :], window, groups, True)

    def _mask(
        self, distance: torch.Tensor, window: int | None, groups: int, prefix: bool
    ) -> torch.Tensor:
        key = (window, groups, prefix)
        if key not in self._masks:
            blocked = distance < 0
            if window is not None:
                blocked = blocked | (distance >= window)
            mask = torch.where(blocked, BLOCKED, 0.0).to(torch.float32)[None]
            self._masks[key] = mask.repeat(1, groups, 1) if groups > 1 else mask
        return self._masks[key]


def install_row_attention(
    model: nn.Module, layout: RowLayout, longest: int, before: int = 0
) -> None:
    """Make ``model`` attend row by row as ``layout`` says; ``longest`` is the bound of ``T``, and
    ``before`` that of ``L``.

    A sliding window of ``longest`` tokens or more never cuts a row and costs no mask of its own;
    nor does one of ``before`` more cut a prefix.
    """

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        # query [P, H, B*T, d], key and value [P, KV, B*T, d]
        probes, heads, packed, width = query.shape
        kv_heads = key.shape[1]
        groups = heads // kv_heads
        rows, length = layout.rows, layout.length
        if scaling is None:
            scaling = width**-0.5
        key, value, prefix = layout.enter(key, value)
        window = sliding_window
        if window is not None and window >= longest:
            window = None
        flat = probes * kv_heads * rows
        # Copies, not reshapes: a reshape would guard on how symbolic strides compare.
        query = contiguous(
            (query * scaling).view(probes, kv_heads, groups, rows, length, width), 0, 1, 3, 2, 4, 5
        )
        query = query.view(-1).view(flat, groups * length, width)
        key = contiguous(key.view(probes, kv_heads, rows, length, width), 0, 1, 2, 4, 3)
        value = contiguous(value).view(flat, length, width)
        scores = torch.bmm(query, key.view(flat, width, length))
        scores = scores + layout.mask(window, groups)
        if prefix is None:
            output = torch.bmm(torch.softmax(scores, dim=-1), value)
        else:
            keys, values = prefix
            tokens = values.shape[2]
            all_rows = rows * groups * length
            seen = torch.bmm(
                query.view(-1).view(probes * kv_heads, all_rows, width),
                keys.view(probes * kv_heads, width, tokens),
            )
            seen = seen.view(-1).view(flat, groups * length, tokens)
            if sliding_window is not None and sliding_window < longest + before:
                seen = seen + layout.prefix_mask(sliding_window, groups, tokens)
            weights = torch.softmax(torch.cat([seen, scores], dim=2), dim=-1)
            seen = contiguous(weights[:, :, :tokens])
            output = torch.bmm(
                seen.view(-1).view(probes * kv_heads, all_rows, tokens),
                values.view(probes * kv_heads, tokens, width),
            )
            output = output.view(-1).view(flat, groups * length, width)
            output = output + torch.bmm(contiguous(weights[:, :, tokens:]), value)
        # Through one axis, because splitting B and T guards on strides too.
        output = output.view(-1).view(probes, kv_heads, rows, groups, length, width)
        output = contiguous(output, 0, 2, 4, 1, 3, 5)
        return output.view(-1).view(probes, packed, heads, width), None

    # Registered under a fixed name: the last model to be prepared owns it, and only for as long
    # as it is being exported. No mask function of that name exists, so transformers passes None.
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    model.config._attn_implementation = NAME  # type: ignore[union-attr]


def contiguous(x: torch.Tensor, *axes: int) -> torch.Tensor:
    """A copy of ``x``, its axes in another order if ``axes`` are given."""
    return (x.permute(axes) if axes else x).clone(memory_format=torch.contiguous_format)

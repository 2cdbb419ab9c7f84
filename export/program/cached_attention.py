"""Attention of new tokens over those before them, whose keys and values come as inputs.

The program keeps no state. The caller holds the cache, passes it in and appends what comes back:
a mutable buffer would be copied whole at each token, or need an operator of its own, while an
input is read where it lies. Keys are kept transposed, ``[KV, d, S]``, values as ``[KV, S, d]``:
of three layouts the fastest (a token over 512 others in SmolLM2's shape, one thread: 83 us a block,
against 120 and 160).

The past is never joined with the present: two products make the scores, two more the output.
Scores alone are joined, for one softmax. Places of the cache that are not filled yet are masked and
must hold finite numbers.
"""

from typing import Any

import torch
from torch import nn

from ..quiet import quiet
from .row_attention import BLOCKED, contiguous

with quiet():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "seedtune_cached"
Cache = tuple[torch.Tensor, torch.Tensor]
"""Keys float32 ``[KV, d, S]`` and values ``[KV, S, d]`` of one block."""


class CachedPass:
    """What attention needs of a pass over ``[1, T]`` tokens, and the cache that it leaves."""

    def __init__(self, length: int, start: torch.Tensor, past: list[Cache]) -> None:
        """Of ``length`` tokens behind ``start`` (int64 ``[1]``) others, whose keys and values fill
        the first places of ``past``."""
        self.new: list[Cache] = []
        """Of the pass's own tokens, block by block: ``[KV, T, d]`` both, as the caller appends."""
        self.past, self._start, self._length = past, start, length
        self._masks: dict[tuple[int | None, int], torch.Tensor] = {}

    def mask(self, window: int | None, groups: int) -> torch.Tensor:
        """Additive mask float32 ``[1, groups * T, S + T]``."""
        key = (window, groups)
        if key not in self._masks:
            place = torch.arange(self._length)
            distance = place[:, None] - place[None, :]
            blocked = distance < 0
            if window is not None:
                blocked = blocked | (distance >= window)
            slots = torch.arange(self.past[0][1].shape[1])[None, :]
            hidden = (slots >= self._start[:, None]).expand(self._length, -1)
            if window is not None:
                hidden = hidden | (place[:, None] + self._start[:, None] - slots >= window)
            blocked = torch.cat([hidden, blocked], dim=1)
            mask = torch.where(blocked, BLOCKED, 0.0).to(torch.float32)[None]
            self._masks[key] = mask.repeat(1, groups, 1) if groups > 1 else mask
        return self._masks[key]


def install_cached_attention(running: CachedPass, longest: int) -> None:
    """Register attention of a pass under ``NAME``, for a model whose
    ``config._attn_implementation`` is that.

    Args:
        longest: bound of the tokens before and in a pass; a window of so many cuts nothing.
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
        # query [1, H, T, d], key and value [1, KV, T, d]
        _, heads, length, width = query.shape
        kv_heads = key.shape[1]
        groups = heads // kv_heads
        if scaling is None:
            scaling = width**-0.5
        if sliding_window is not None and sliding_window >= longest:
            sliding_window = None
        query = contiguous(query * scaling).view(kv_heads, groups * length, width)
        key = contiguous(key).view(kv_heads, length, width)
        value = contiguous(value).view(kv_heads, length, width)
        keys, values = running.past[len(running.new)]
        running.new.append((key, value))
        now = torch.bmm(query, contiguous(key, 0, 2, 1))
        mask = running.mask(sliding_window, groups)
        scores = torch.cat([torch.bmm(query, keys), now], dim=2)
        weights = torch.softmax(scores + mask, dim=-1)
        slots = values.shape[1]
        output = torch.bmm(weights[:, :, :slots], values)
        output = output + torch.bmm(weights[:, :, slots:], value)
        output = output.view(-1).view(1, heads, length, width)
        return contiguous(output, 0, 2, 1, 3), None

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)

"""The hidden states that a readout sees, of each scored position: the residual stream two thirds of
the way up and at its end, and half way up the mean of it over the row so far.

What a text is about stands clearest in the middle of a decoder, part of it not yet gathered in the
last token; its last blocks turn that into the next token. Other depths are compared in
``host_tools/bench/results/README.md``. (MeZO's linear probing, arXiv 2305.17333, table 1, reads the
last block alone.)
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from ..model.decoder_blocks import decoder_blocks

DEPTHS = (2 / 3, 1.0)
MEAN_DEPTHS = (1 / 2,)


def tapped_blocks(count: int) -> tuple[list[int], list[int]]:
    """Blocks below the states of the token itself, and below the means, in a model of ``count``."""
    own, mean = (
        sorted({max(1, round(count * depth)) for depth in depths})
        for depths in (DEPTHS, MEAN_DEPTHS)
    )
    return own, mean


class BlockTap:
    """Keeps what some decoder blocks return in the running forward pass."""

    def __init__(self, model: Any) -> None:
        """Hook the blocks of ``model`` at ``DEPTHS`` and ``MEAN_DEPTHS``.

        Raises:
            ModelError: the model has no list of its ``num_hidden_layers`` decoder blocks.
        """
        self.all_blocks = decoder_blocks(model)
        self.blocks, self.mean_blocks = tapped_blocks(len(self.all_blocks))
        """How many blocks lie below each state."""
        self._seen: dict[int, torch.Tensor] = {}
        for below in {*self.blocks, *self.mean_blocks}:
            self.all_blocks[below - 1].register_forward_hook(partial(self._keep, below))

    def take(self, positions: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        """The pass's states at ``positions``, ``[P, N, D]``: each divided by its root mean square,
        side by side, means last. Forgets the pass, of ``rows`` rows of ``length`` tokens."""
        parts = [self._seen[below].index_select(1, positions) for below in self.blocks]
        shares = shares_so_far(positions, rows, length)
        for below in self.mean_blocks:
            hidden = self._seen[below]
            parts.append(torch.bmm(shares[None].expand(hidden.shape[0], -1, -1), hidden))
        self.forget()
        return torch.cat([unit_mean_square(part) for part in parts], dim=-1)

    def take_own(self, places: slice) -> torch.Tensor:
        """The pass's own states, without means, at ``places``, ``[P, N, S]``, as ``take`` gives
        them. Forgets the pass."""
        own = [unit_mean_square(self._seen[below][:, places]) for below in self.blocks]
        self.forget()
        return torch.cat(own, dim=-1)

    def sizes(self, positions: torch.Tensor) -> torch.Tensor:
        """What ``take`` multiplies the pass's own states by, ``[P, N, S / D]``."""
        own = [self._seen[below].index_select(1, positions) for below in self.blocks]
        return torch.cat([_scale(each) for each in own], dim=-1)

    def forget(self) -> None:
        """Drop what the last pass left."""
        self._seen.clear()

    def _keep(self, below: int, module: nn.Module, arguments: Any, output: Any) -> None:
        self._seen[below] = output[0] if isinstance(output, tuple) else output


def shares_so_far(positions: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Weights ``[N, rows * length]`` of a mean over each position's row up to and with itself.

    Padding stands behind every position, so that it has no part in it.
    """
    packed = rows * length
    # Nothing is as long as there are rows: those may be more than the bound if they are short.
    column = torch.arange(length)[None, :].expand(rows, length).reshape(packed)
    first = positions - column.index_select(0, positions)
    place = torch.arange(packed)[None, :]
    shares = ((place >= first[:, None]) & (place <= positions[:, None])).to(torch.float32)
    return shares / shares.sum(dim=1, keepdim=True)


def unit_mean_square(hidden: torch.Tensor) -> torch.Tensor:
    """Vectors along the last axis, divided by their root mean square."""
    return hidden * _scale(hidden)


def _scale(hidden: torch.Tensor) -> torch.Tensor:
    return torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)

"""Low-rank terms of the upper blocks: what a device can learn below the top of the model.

Beside the products of a block's MLP the program adds ``B A x``: A is fixed, principal directions of
what the matrix reads on generic text; the B of all blocks are inputs. Zeros give the numbers of a
program without them, to the bit. From a forward with them the device works out their gradient (see
``runtime.scoring.block_terms``), for which the program returns the residual stream as the MLP's
norm reads it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.scoring.block_terms import ACTIVATED, unit_of
from torch import nn

from ..model.decoder_blocks import decoder_blocks
from ..model.gated_blocks import (
    NAMES,
    activation,
    mlp_norms,
    norm_eps,
    norm_weight,
    suited_blocks,
)

DEFAULT_RANK = 8
_SAMPLES = 2048
"""Tokens that directions are taken from."""
_EXACT = 1e-3
"""How far an MLP may lie from the form that the rule takes, as a share of what it gives."""


class LowRankTerms(nn.Module):
    """The terms of all blocks, added by hooks while a pass has them."""

    def __init__(self, blocks: Sequence[Any], first: int, rank: int, activation: str) -> None:
        """Hook ``blocks``, the upper ones of a decoder, below which there are ``first``."""
        super().__init__()
        self.first, self.rank, self.count, self.activation = first, rank, len(blocks), activation
        self.width = mlp_norms(blocks[0])[0].weight.shape[0]
        down = blocks[0].mlp.down_proj
        self.inner = getattr(down, "dense", down).in_features
        self._blocks = [list(blocks)]  # in a list: they are another module's
        self._given: Sequence[torch.Tensor] = ()
        self._keeping = False
        self._along: dict[tuple[int, bool], torch.Tensor] = {}
        self._middles: dict[int, torch.Tensor] = {}
        for number, block in enumerate(blocks):
            self.register_buffer(f"inputs_{number}", torch.zeros(rank, self.width))
            self.register_buffer(f"inner_{number}", torch.zeros(rank, self.inner))
            mlp_norms(block)[0].register_forward_pre_hook(partial(self._keep, number))
            for slot, name in enumerate(NAMES):
                getattr(block.mlp, name).register_forward_hook(partial(self._add, number, slot))

    @classmethod
    def of(cls, model: Any, rank: int) -> "LowRankTerms | None":
        """Of a model's upper blocks; None where it has none that suit (see ``suited_blocks``)."""
        blocks = suited_blocks(model) if rank else []
        if not blocks:
            return None
        below = len(decoder_blocks(model)) - len(blocks)
        return cls(blocks, below, rank, activation(model.config) or "")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """``(out, rank)`` of each B: block by block of gate, up and down."""
        return [(self.inner, self.rank), (self.inner, self.rank), (self.width, self.rank)] * (
            self.count
        )

    def begin(self, given: Sequence[torch.Tensor], keep: bool = False) -> None:
        """Start a forward pass with these B; none leave the program as it is.

        Args:
            keep: for ``middles``.
        """
        self.end()
        self._given, self._keeping = given, keep

    def end(self) -> None:
        """Drop every tensor of the pass."""
        self._given, self._keeping = (), False
        self._along.clear()
        self._middles.clear()

    def middles(self, positions: torch.Tensor) -> list[torch.Tensor]:
        """The residual stream in front of each block's MLP, ``[P, N, D]``, of a pass that keeps
        it."""
        return [self._middles[n].index_select(1, positions) for n in range(self.count)]

    @torch.no_grad()
    def find_directions(self, run: Callable[[], object]) -> list[npt.NDArray[np.float32]] | None:
        """Set every A by what the matrices read while ``run`` passes generic text through.

        Returns:
            Block by block what 1 stands for in a learned number: the root mean square of what a
            matrix gives over that of what is read along each direction, float32 ``[3, rank]``.
            None where an MLP does not compute what the rule takes for granted.
        """
        found: list[npt.NDArray[np.float32]] = []
        seen: dict[str, torch.Tensor] = {}  # of one block at a time
        odd = False

        def keep(name: str, tensor: torch.Tensor) -> None:
            seen[name] = tensor.flatten(0, -2)[:_SAMPLES].clone()

        def note(name: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
            keep(name, output)
            keep(f"{name} in", args[0])

        def ended(block: Any, args: Any, output: Any) -> None:
            nonlocal odd
            keep("out", output[0] if isinstance(output, tuple) else output)
            odd = odd or not _as_taken(block, seen, self.activation)
            scales = []
            for name, out in (("inputs", NAMES[:2]), ("inner", NAMES[2:])):
                read = seen[f"{out[0]} in"]
                directions = _directions(read, self.rank)
                getattr(self, f"{name}_{len(found)}").copy_(directions)
                along = (read @ directions.t()).square().mean(0).sqrt().clamp(min=1e-6)
                scales += [seen[each].square().mean().sqrt() / along for each in out]
            found.append(torch.stack(scales).numpy())
            seen.clear()

        handles = []
        for block in self._blocks[0]:
            for name in NAMES:
                matrix = getattr(block.mlp, name)
                handles.append(matrix.register_forward_hook(partial(note, name)))
            handles.append(
                mlp_norms(block)[0].register_forward_pre_hook(
                    lambda module, args: keep("middle", args[0])
                )
            )
            handles.append(block.register_forward_hook(ended))
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        return None if odd else found

    def part(self) -> dict[str, npt.NDArray[np.float32]]:
        """What a device needs of it: ``inputs`` float32 ``[L, rank, D]``, ``inner``
        ``[L, rank, F]`` and the norms' weights ``norms`` ``[L, N, D]``."""
        blocks = self._blocks[0]
        numbers = range(self.count)
        return {
            "inputs": torch.stack([getattr(self, f"inputs_{n}") for n in numbers]).numpy(),
            "inner": torch.stack([getattr(self, f"inner_{n}") for n in numbers]).numpy(),
            "norms": np.stack([np.stack(list(map(norm_weight, mlp_norms(b)))) for b in blocks]),
        }

    def matrices(self) -> list[Any]:
        """The modules of the products, block by block gate, up and down."""
        return [getattr(block.mlp, name) for block in self._blocks[0] for name in NAMES]

    @property
    def eps(self) -> float:
        """Of the norms."""
        return norm_eps(mlp_norms(self._blocks[0][0])[0])

    def _keep(self, number: int, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self._keeping:
            self._middles[number] = args[0]

    def _add(
        self, number: int, slot: int, module: nn.Module, args: Any, output: torch.Tensor
    ) -> torch.Tensor | None:
        if not self._given:
            return None
        key = number, slot == 2
        if key not in self._along:  # gate and up read the same
            directions = getattr(self, f"{'inner' if slot == 2 else 'inputs'}_{number}")
            self._along = {key: nn.functional.linear(args[0], directions)}
        return output + nn.functional.linear(self._along[key], self._given[3 * number + slot])


def _as_taken(block: Any, seen: dict[str, torch.Tensor], activation: str) -> bool:
    """Whether a block computed what ``block_terms`` differentiates."""
    own = {name: tensor.numpy() for name, tensor in seen.items()}

    def normed(norm: Any, state: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return unit_of(state, norm_eps(norm))[0] * norm_weight(norm)

    front, *behind = mlp_norms(block)
    given = own["down_proj"]
    for norm in behind:
        given = normed(norm, given)
    pairs = (
        (own["gate_proj in"], normed(front, own["middle"])),
        (own["down_proj in"], ACTIVATED[activation](own["gate_proj"])[0] * own["up_proj"]),
        (own["out"], own["middle"] + given),
    )
    apart = ((np.linalg.norm(a - b), np.linalg.norm(a)) for a, b in pairs)
    return all(bool(off <= _EXACT * (1e-6 + size)) for off, size in apart)


def _directions(read: torch.Tensor, rank: int) -> torch.Tensor:
    """The first principal directions, not about the mean, of float32 ``[n, width]``: orthonormal
    rows ``[rank, width]``; zeros where there are fewer tokens."""
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(rank, read.shape[1])
    wide = min(rank + 8, *read.shape)
    basis = torch.randn(read.shape[1], wide, generator=generator)
    for _ in range(6):  # subspace iteration, Halko et al., arXiv 0909.4061, algorithm 4.4
        basis = torch.linalg.qr(read.t() @ (read @ basis))[0]
    small = torch.linalg.eigh((read @ basis).t() @ (read @ basis))[1].flip(1)
    own = (basis @ small).t()[:rank]
    found[: len(own)] = own
    return found

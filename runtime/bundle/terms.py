"""What low-rank terms of the upper blocks are learned in: a bundle's part ``terms.safetensors``.

A program that takes terms adds ``B A x`` beside the gate, up and down products of its upper blocks
(see ``export.program.low_rank_terms``). The part holds A, and what else their gradient needs of a
block but the matrices themselves: these are read where the program's file has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from ..errors import BundleError
from .tensors import check_tensors, read_tensors
from .text_head import WORDS_GROUP

SLOTS = 3
"""Matrices of a block: gate, up, down."""
ACTIVATIONS = ("silu", "gelu-tanh")
"""Of the gate. The second is GELU as tanh comes near it (arXiv 1606.08415)."""
_AXES = {
    "inputs": (np.float32, "LrD"),
    "inner": (np.float32, "LrF"),
    "norms": (np.float32, "LND"),
    "scales": (np.float32, "L3r"),
    "columns": (np.int32, "C"),
    "tokens": (np.int32, "RT"),
}
"""Type and axes of each tensor."""


@dataclass(frozen=True)
class MatrixPlace:
    """Where a matrix ``[out, in]`` lies in a program's file."""

    codes: int
    """Offset of uint8 ``[out, in / 2]``, as ``WordsPlace`` says."""
    scales: int
    """Offset of bfloat16 ``[out, in / 32]``."""
    floats: int
    """Offset of float32 ``[C, out]``: the columns that are not int4."""
    columns: int
    """C of these; 0 where all are int4."""
    layer: str
    """Its name among the bundle's ``layers``; empty where it has no sensitive values."""


@dataclass(frozen=True)
class TermsInfo:
    """Sizes of the terms, and where the matrices beside them lie."""

    first: int
    """Blocks below the first that has terms."""
    blocks: int
    """L."""
    rank: int
    """r."""
    inner: int
    """F, width between the matrices of an MLP."""
    eps: float
    """Of the norms."""
    norms: int
    """N: 1, a norm in front of each MLP; 2, another behind it."""
    activation: str
    """One of ``ACTIVATIONS``."""
    file: str
    matrices: tuple[MatrixPlace, ...]
    """Block by block gate, up and down."""

    def matrix_shapes(self, width: int) -> list[tuple[int, int]]:
        """``(out, in)`` of each of ``matrices`` in a model of width D."""
        up, down = (self.inner, width), (width, self.inner)
        return [up, up, down] * self.blocks

    def shapes(self, width: int) -> list[tuple[int, int]]:
        """``(out, r)`` of each B, in the order of ``matrices``."""
        return [(out, self.rank) for out, _ in self.matrix_shapes(width)]


def inside_count(terms: int) -> int:
    """Results that a program has beside log-probabilities and hidden states where it takes so many
    terms: sizes, and one of each block (see ``export.program.score_program``)."""
    return 1 + terms // SLOTS if terms else 0


@dataclass(frozen=True)
class TermsPart:
    """Tensors of the part."""

    inputs: NDArray[np.float32]
    """float32 ``[L, r, D]``: A of gate and up."""
    inner: NDArray[np.float32]
    """float32 ``[L, r, F]``: A of down."""
    norms: NDArray[np.float32]
    """float32 ``[L, N, D]``: weights of the norm in front of each MLP, and of one behind it."""
    scales: NDArray[np.float32]
    """float32 ``[L, 3, r]``: what 1 stands for in a learned number."""
    columns: NDArray[np.int32]
    """int32 ``[C]``: numbers of the columns that are not int4, matrix after matrix."""
    tokens: NDArray[np.int32]
    """int32 ``[R, T]``: the generic text whose states a text frame holds."""

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save_safetensors({name: getattr(self, name) for name in _AXES})


def load_terms(path: Path, shown: Path, info: TermsInfo, width: int, vocabulary: int) -> TermsPart:
    """Read the part from ``path``; ``shown`` names it in errors.

    Raises:
        BundleError: not such a file, or of other sizes than ``info`` says.
    """
    tensors = read_tensors(path, shown, _AXES)
    sizes = {"L": info.blocks, "r": info.rank, "D": width, "F": info.inner, "3": SLOTS}
    sizes["N"] = info.norms
    sizes["C"] = sum(place.columns for place in info.matrices)
    rows = tensors["tokens"].shape
    if len(rows) != 2 or rows[0] < 1 or rows[1] < 2:
        raise BundleError(f"{shown}: tokens are {list(rows)}, must be rows of two and more")
    sizes["R"], sizes["T"] = rows
    check_tensors(shown, tensors, _AXES, sizes)
    _check_numbers(shown, "tokens", tensors["tokens"], vocabulary)
    first = 0
    for place, (_, wide) in zip(info.matrices, info.matrix_shapes(width), strict=True):
        own = tensors["columns"][first : first + place.columns]
        _check_numbers(shown, "columns", own, wide)
        first += place.columns
    return TermsPart(**tensors)


def _check_numbers(shown: Path, name: str, numbers: NDArray[Any], end: int) -> None:
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < end):
        raise BundleError(f"{shown}: {name} holds a number outside 0..{end - 1}")


def check_terms(
    content: Mapping[str, Any],
    width: int,
    model: Mapping[str, Any],
    layers: Mapping[str, tuple[int, int]],
    file_bytes: int,
) -> TermsInfo:
    """From the manifest's ``terms``.

    Args:
        width: D.
        model: the manifest's.
        layers: ``(out, in)`` of each that has sensitive values.
        file_bytes: of the file that holds the matrices.

    Raises:
        ValueError: a field contradicts another.
    """
    names = {field.name for field in fields(TermsInfo)} - {"matrices"}
    places = tuple(MatrixPlace(**each) for each in content["matrices"])
    info = TermsInfo(**{name: content[name] for name in names}, matrices=places)
    if info.first + info.blocks != model["layers"]:
        raise ValueError(
            f"terms of {info.blocks} blocks above {info.first} do not end at the model's "
            f"{model['layers']}"
        )
    if info.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"terms.activation is {info.activation[:80]!r}, must be one of {known}")
    if len(places) != SLOTS * info.blocks:
        raise ValueError(f"terms.matrices has {len(places)} places for {info.blocks} blocks")
    if width % WORDS_GROUP or info.inner % WORDS_GROUP:
        raise ValueError(f"terms: {width} or {info.inner} is no multiple of {WORDS_GROUP}")
    shapes = info.matrix_shapes(width)
    for number, (place, (out, wide)) in enumerate(zip(places, shapes, strict=True)):
        ends = (
            place.codes + out * wide // 2,
            place.scales + 2 * out * (wide // WORDS_GROUP),
            place.floats + 4 * out * place.columns,
        )
        if max(ends) > file_bytes or place.columns > wide:
            raise ValueError(f"terms.matrices[{number}] lies outside {info.file[:80]!r}")
        if place.layer and layers.get(place.layer) != (out, wide):
            raise ValueError(
                f"terms.matrices[{number}]: {place.layer[:80]!r} is no layer of [{out}, {wide}]"
            )
    return info

"""Low-rank terms of the upper blocks, and their gradient from what a forward returns.

Of a token's loss the gradient by the last block's output is known, since all that lies behind it
is. It is handed down through the token's own MLPs and past their attention, whose input gets what
its output gets. With W the matrices of a block, ``x`` what gate and up read,
``y = act(gate) * up``, and g ``[D]`` the gradient by what down gives (that by the block's output,
through a norm where one lies between):

    inside  = W_down' g
    by_up   = inside * act(gate)
    by_gate = inside * up * act'(gate)
    learned   beside down  g (A y)';   beside up  by_up (A x)';   beside gate  by_gate (A x)'
              in down, up and gate themselves  g y',  by_up x',  by_gate x'
    handed down   that by the output + (what goes into the MLP's norm, by W_gate' by_gate
                  + W_up' by_up)

and W with its term everywhere. This is the backward pass of the MLPs alone, for the tokens that are
scored: nothing crosses tokens, no graph is kept, and a block is done when the one above it is. A
forward returns of each block what its norm reads; gate and up are computed from it anew, from the
int4 codes where the program's file has them. (Skipped layers passed by identity: LCSB, arXiv
2602.13073. Measured: ``host_tools/bench/results/depth.md``.)
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..bundle.terms import SLOTS, TermsInfo, TermsPart
from .int4_matrix import WeightsFile, unpacked

Floats = NDArray[np.float32]
TOKENS = 512
"""Tokens of a step that memory is counted for."""
AT_ONCE = 128
"""Tokens that go through a block at once, for what is between its matrices."""


class Matrix(NamedTuple):
    """A matrix as a program's file holds it, mapped."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint16]
    floats: Floats
    """float32 ``[C, out]``: columns that are not int4."""
    columns: NDArray[np.int32] = np.empty(0, np.int32)

    def whole(self) -> Floats:
        """float32 ``[out, in]``."""
        found = unpacked(self.codes, self.scales)
        found[:, self.columns] = self.floats.T
        return found


class ValuesPlace(NamedTuple):
    """Where a matrix has sensitive values."""

    own: slice
    """Of all values."""
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    """Counted among the matrix's columns that are not int4."""


class Kept(NamedTuple):
    """States of some tokens in half the bytes, each with a scale of its own: a state may have
    numbers beyond what float16 holds."""

    parts: NDArray[np.float16]
    """float16 ``[N, D]``."""
    scales: Floats
    """float32 ``[N, 1]``."""

    @classmethod
    def of(cls, states: Floats) -> "Kept":
        """Of float32 ``[N, D]``."""
        scales = np.abs(states).max(axis=1, keepdims=True) + np.float32(1e-30)
        return cls((states / scales).astype(np.float16), scales)

    def whole(self) -> Floats:
        """float32 ``[N, D]``."""
        return self.parts.astype(np.float32) * self.scales


class Inside(NamedTuple):
    """What forwards gave of some tokens."""

    sizes: Floats
    """float32 ``[N, S / D]``: 1 over the root mean square of each state that an adapter reads."""
    middles: list[Kept]
    """Of each block, what its MLP's norm reads."""

    def followed_by(self, other: "Inside") -> "Inside":
        """These tokens, then others."""
        middles = [
            Kept(np.concatenate([one.parts, two.parts]), np.concatenate([one.scales, two.scales]))
            for one, two in zip(self.middles, other.middles, strict=True)
        ]
        return Inside(np.concatenate([self.sizes, other.sizes]), middles)

    @classmethod
    def of(cls, passes: Sequence[Sequence[Floats]]) -> "Inside":
        """Of ``Scores.inside`` of one probe, pass after pass."""
        found = [cls(own[0][0], [Kept.of(each[0]) for each in own[1:]]) for own in passes]
        return reduce(cls.followed_by, found)


class BlockTerms:
    """What can be learned of a bundle's blocks; the part and the matrices are read when they are
    first needed."""

    def __init__(
        self,
        info: TermsInfo,
        width: int,
        taps: Sequence[int],
        load_part: Callable[[], TermsPart],
        load_matrices: Callable[[], tuple[list[Matrix], Callable[[], None]]],
        sensitive: Callable[[str], tuple[slice, NDArray[np.int64]]],
    ) -> None:
        """
        Args:
            width: D.
            sensitive: which of all values, and their flat places, a layer has.
            taps: how many blocks lie below each state that an adapter reads.
            load_matrices: without the numbers of their columns; and what is to be called when a
                block's were read (see ``WeightsFile.give_back``).
        """
        self.info = info
        self.shapes = info.shapes(width)
        """``(out, rank)`` of each term: block by block gate, up, down."""
        self.entries = sum(out * rank for out, rank in self.shapes)
        """Numbers that are learned."""
        self._taps = taps
        self._load_part, self._load_matrices = load_part, load_matrices
        self._sensitive = sensitive
        self._give_back: Callable[[], None] = lambda: None
        self._terms: tuple[Floats, list[Floats]] | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> "BlockTerms | None":
        """Of a bundle; None where its programs take no terms."""
        info, adapter = bundle.terms, bundle.adapter
        if info is None or adapter is None:
            return None
        width = adapter.width

        def load() -> tuple[list[Matrix], Callable[[], None]]:
            with bundle.checked(info.file) as path:
                file = WeightsFile(path)
            found = []
            for place, shape in zip(info.matrices, info.matrix_shapes(width), strict=True):
                codes = file.int4(place.codes, place.scales, shape)
                found.append(Matrix(*codes, file.floats(place.floats, (place.columns, shape[0]))))
            return found, file.give_back

        def sensitive(name: str) -> tuple[slice, NDArray[np.int64]]:
            layer = next(each for each in bundle.layers if each.name == name)
            own = slice(layer.offset, layer.offset + layer.count)
            return own, np.asarray(bundle.indices[own], np.int64)

        return cls(info, width, adapter.blocks, bundle.terms_part, load, sensitive)

    @cached_property
    def part(self) -> TermsPart:
        """Read once."""
        return self._load_part()

    @cached_property
    def matrices(self) -> list[Matrix]:
        """Block by block gate, up, down; mapped once."""
        matrices, self._give_back = self._load_matrices()
        ends = np.cumsum([place.columns for place in self.info.matrices])[:-1]
        columns = np.split(self.part.columns, ends)
        found = zip(matrices, columns, strict=True)
        return [matrix._replace(columns=own) for matrix, own in found]

    @cached_property
    def values(self) -> list[ValuesPlace | None]:
        """Of each matrix; None where it has none."""
        found: list[ValuesPlace | None] = []
        for matrix, place in zip(self.matrices, self.info.matrices, strict=True):
            if not place.layer:
                found.append(None)
                continue
            own, flat = self._sensitive(place.layer)
            rows, columns = np.divmod(flat, 2 * matrix.codes.shape[1])
            found.append(ValuesPlace(own, rows, np.searchsorted(matrix.columns, columns)))
        return found

    def terms(self, learned: Floats) -> list[Floats]:
        """What the program takes, of what is learned, float32 ``[entries]``; the last ones are
        kept, since every pass of an evaluation asks for the same."""
        if self._terms is None or not np.array_equal(self._terms[0], learned):
            found, first = [], 0
            for number, (out, rank) in enumerate(self.shapes):
                own = learned[first : first + out * rank].reshape(out, rank)
                found.append(own * self.part.scales[number // SLOTS, number % SLOTS])
                first += out * rank
            self._terms = learned.copy(), found
        return self._terms[1]

    def changes(self, learned: Floats) -> Iterator[tuple[int, int, Floats, Floats]]:
        """What the terms add to the model's matrices: block, slot (of gate, up and down), and the
        two factors of the change, float32 ``[out, rank]`` and ``[rank, in]``."""
        for number, term in enumerate(self.terms(learned)):
            block, slot = divmod(number, SLOTS)
            directions = self.part.inner if slot == SLOTS - 1 else self.part.inputs
            yield self.info.first + block, slot, term, directions[block]

    def gradient(self, learned: Floats, inside: Inside, states: Floats, upon: Floats) -> Floats:
        """Of a loss by what is learned, float32 ``[entries]``: summed over tokens.

        Args:
            states: float32 ``[N, S]``, the states that an adapter reads.
            upon: float32 ``[N, S]``: the loss's gradient by these, of each token.
        """
        found = np.zeros(self.entries, np.float32)
        ends = np.cumsum([out * rank for out, rank in self.shapes])
        along = self.part.inputs, self.part.inputs, self.part.inner
        down = self._handed_down(0, self.terms(learned), None, inside, states, upon)
        for number, by, read in down:
            block, slot = divmod(number, SLOTS)
            own = by.T @ (read @ along[slot][block].T) * self.part.scales[block, slot]
            found[ends[number] - own.size : ends[number]] += own.reshape(-1)
        return found

    def values_gradient(
        self, block: int, values: Floats, inside: Inside, states: Floats, upon: Floats
    ) -> Floats:
        """The same by the sensitive values, float32 ``[K]``, where they are, down to the model's
        ``block``; 0 for those below it and of other matrices. Of a forward without terms."""
        found = np.zeros(len(values), np.float32)
        least = max(0, block - self.info.first)
        for number, by, read in self._handed_down(least, [], values, inside, states, upon):
            place = self.values[number]
            if place is not None:
                whole = by.T @ read[:, self.matrices[number].columns]
                found[place.own] += whole[place.rows, place.columns]
        return found

    def _handed_down(
        self,
        least: int,
        terms: list[Floats],
        values: Floats | None,
        inside: Inside,
        states: Floats,
        upon: Floats,
    ) -> Iterator[tuple[int, Floats, Floats]]:
        """Of some tokens at a time, block by block from the last to number ``least``: a matrix's
        number, the gradient by what it gives, float32 ``[N, out]``, and what it reads, ``[N, in]``.
        """
        width = self.part.norms.shape[-1]
        first, last = self.info.first, self.info.first + self.info.blocks
        tapped = {
            below: slice(number * width, (number + 1) * width)
            for number, below in enumerate(self._taps)
        }
        g = np.zeros((len(states), width), np.float32)
        for block in range(last - 1, first + least - 1, -1):
            if block + 1 in tapped:
                own = tapped[block + 1]
                size = inside.sizes[:, own.start // width, None]
                g += unit_gradient(states[:, own], size, upon[:, own])
            state = inside.middles[block - first].whole()
            g = yield from self._through(block - first, terms, values, state, g)

    def _through(
        self, number: int, terms: list[Floats], values: Floats | None, state: Floats, g: Floats
    ) -> Generator[tuple[int, Floats, Floats], None, Floats]:
        """Through one block, from the gradient by its output to that by its input, float32
        ``[N, D]``. ``state`` is what its norm reads."""
        numbers = range(SLOTS * number, SLOTS * (number + 1))
        gates, ups, downs = (self._moved(each, terms, values) for each in numbers)
        self._give_back()
        norm, *behind = self.part.norms[number]
        handed, eps = np.empty_like(g), self.info.eps
        for first in range(0, len(g), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            unit, size = unit_of(state[some], eps)
            x = unit * norm
            gate, up = x @ gates.T, x @ ups.T
            activated, slope = ACTIVATED[self.info.activation](gate)
            y, by_down = activated * up, g[some]
            for weight in behind:
                by_down = unit_gradient(*unit_of(y @ downs.T, eps), by_down * weight)
            inside = by_down @ downs
            by_up = inside * activated
            by_gate = inside * up * slope
            yield from zip(numbers, (by_gate, by_up, by_down), (x, x, y), strict=True)
            by_unit = (by_gate @ gates + by_up @ ups) * norm
            handed[some] = g[some] + unit_gradient(unit, size, by_unit)
        return handed

    def _moved(self, number: int, terms: list[Floats], values: Floats | None) -> Floats:
        """A matrix with its term, or its sensitive values where they are."""
        matrix = self.matrices[number]
        place = None if values is None else self.values[number]
        if values is not None and place is not None:
            floats = matrix.floats.copy()
            floats[place.columns, place.rows] = values[place.own]
            matrix = matrix._replace(floats=floats)
        found = matrix.whole()
        if terms:
            block, slot = divmod(number, SLOTS)
            directions = self.part.inner if slot == SLOTS - 1 else self.part.inputs
            found += terms[number] @ directions[block]
        return found

    @property
    def memory_bytes(self) -> int:
        """What learning and scoring hold: the part, the terms, and what ``gradient`` takes of a
        batch's tokens and of one block, whose mapped pages are given back."""
        info, width = self.info, self.shapes[-1][0]
        part = 4 * info.blocks * (info.rank * (width + info.inner) + info.norms * width)
        weights = 3 * info.inner * width
        kept = TOKENS * (2 * info.blocks * width + 4 * 4 * width)
        passing = AT_ONCE * 4 * (8 * info.inner + 6 * width)
        return part + 3 * 4 * self.entries + 4 * weights + kept + passing


def unit_of(state: Floats, eps: float) -> tuple[Floats, Floats]:
    """A state float32 ``[N, D]`` divided by its root mean square, and 1 over that ``[N, 1]``."""
    size = 1 / np.sqrt(np.square(state).mean(axis=1, keepdims=True) + eps)
    return state * size, size


def _silu(gate: Floats) -> tuple[Floats, Floats]:
    with np.errstate(over="ignore"):  # far below zero it is 0
        half = 1 / (1 + np.exp(-gate))
    found = np.asarray(gate * half, np.float32)
    return found, np.asarray(half * (1 + gate - found), np.float32)


def _gelu_tanh(gate: Floats) -> tuple[Floats, Floats]:
    root, cubed = np.float32((2 / np.pi) ** 0.5), np.float32(0.044715)
    square = np.square(gate)
    share = np.tanh(root * gate * (1 + cubed * square))
    half = (1 + share) / 2
    slope = half + gate * (1 - share * share) * root * (1 + 3 * cubed * square) / 2
    return np.asarray(gate * half, np.float32), np.asarray(slope, np.float32)


ACTIVATED: dict[str, Callable[[Floats], tuple[Floats, Floats]]] = {
    "silu": _silu,
    "gelu-tanh": _gelu_tanh,
}
"""Of a gate, what it becomes, and the slope of that."""


def unit_gradient(unit: Floats, size: Floats, by_unit: Floats) -> Floats:
    """By a state, of what is asked of it divided by its root mean square.

    Args:
        unit: float32 ``[N, D]``, the state so divided.
        size: float32 ``[N, 1]``, 1 over that root mean square.
        by_unit: float32 ``[N, D]``, the gradient by ``unit``.
    """
    along = (unit * by_unit).mean(axis=1, keepdims=True)
    return np.asarray((by_unit - unit * along) * size, np.float32)

"""What the engines over ExecuTorch share: a program's methods as ``score`` and ``text``.

For a text, read and written token by token, the program keeps no state (see
``export.program.cached_attention``): its cache of keys and values is held here, so that a text can
be taken back to any of its tokens, and several can be written in turn.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Generation
from ..bundle.program import BEHIND, COLUMNS, GENERATE, METHOD
from ..errors import EngineError
from ..tasks import Batch
from .contract import (
    Engine,
    Nothing,
    Scores,
    Terms,
    Text,
    check_writing,
    checked_inputs,
    inside_shapes,
)
from .read_prefix import ReadPrefix

SLOTS = 64
"""By which the cache grows: unfilled places cost time, and each growth a copy of all."""
Run = Callable[[list[NDArray[np.generic]], list[tuple[int, ...]]], list[NDArray[np.float32]]]
"""Runs a method: inputs and the shapes of its results to these."""


class CachedText(Text):
    """See ``Text``."""

    def __init__(
        self,
        run: Run,
        generation: Generation,
        vocabulary: int,
        inputs: Sequence[NDArray[np.float32]],
    ) -> None:
        """An empty text.

        Args:
            inputs: those of the program between ``start`` and the cache.
        """
        self._run, self._generation, self._vocabulary = run, generation, vocabulary
        self._inputs = [np.ascontiguousarray(each) for each in inputs]
        self._cache: list[NDArray[np.float32]] = []
        self._slots = 0
        self.bound = generation.context
        self.length = 0

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Text``."""
        given = np.asarray(tokens, dtype=np.int64)
        if not len(given):
            raise EngineError("no token is given to read")
        if given.min() < 0 or given.max() >= self._vocabulary:
            raise EngineError(f"tokens must lie in 0..{self._vocabulary - 1}")
        if self.length + len(given) > self.bound:
            raise EngineError(
                f"{self.length + len(given)} tokens exceed the {self.bound} of a text that this "
                "bundle can write; export with a larger --context"
            )
        for first in range(0, len(given), self._generation.chunk):
            logits = self._pass(given[first : first + self._generation.chunk])
        if not np.isfinite(logits).all():
            raise EngineError(
                f"the logits behind token {self.length} hold NaN or infinity; the values in use "
                "are not fit to write with"
            )
        return logits

    def rewind(self, length: int) -> None:
        """See ``Text``."""
        if not 0 <= length <= self.length:
            raise EngineError(f"cannot go back to {length} of {self.length} tokens")
        self.length = length

    def take(self) -> Iterator[NDArray[np.float32]]:
        """The cache, keys and values block by block; the text is empty then."""
        self._slots = self.length = 0
        self._cache.reverse()
        while self._cache:
            yield self._cache.pop()

    def _pass(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """The logits float32 ``[V]`` behind ``tokens``, which are appended to the cache."""
        count, start = len(tokens), self.length
        self._make_room(start + count)
        shapes: list[tuple[int, ...]] = [(1, self._vocabulary)]
        for heads, width in self._generation.cache:
            shapes += [(heads, count, width)] * 2
        inputs: list[NDArray[np.generic]] = [
            tokens[None],
            np.array([start], np.int64),
            *self._inputs,
            *self._cache,
        ]
        (logits,), *new = self._run(inputs, shapes)
        end = start + count
        for keys, added in zip(self._cache[::2], new[::2], strict=True):
            keys[:, :, start:end] = added.transpose(0, 2, 1)
        for values, added in zip(self._cache[1::2], new[1::2], strict=True):
            values[:, start:end] = added
        self.length = end
        return np.asarray(logits)

    def _make_room(self, tokens: int) -> None:
        """Let the cache hold ``tokens``. Unfilled places are zeros: they must be finite."""
        if tokens <= self._slots:
            return
        slots = min(-(-tokens // SLOTS) * SLOTS, self.bound)
        if not self._cache:
            for heads, width in self._generation.cache:
                self._cache.append(np.zeros((heads, width, 0), np.float32))
                self._cache.append(np.zeros((heads, 0, width), np.float32))
        for index, old in enumerate(self._cache):
            axis = 1 + (index % 2 == 0)
            shape = list(old.shape)
            shape[axis] = slots
            new = np.zeros(shape, np.float32)
            kept = [slice(size) for size in old.shape]
            new[tuple(kept)] = old
            self._cache[index] = new
        self._slots = slots


class ExecutorchEngine(Engine):
    """An open program; an engine says how its methods are loaded and run."""

    _shown: Path
    """Its name in errors."""
    _bounds: Bounds
    _generation: Generation | None
    """What its ``generate`` takes, if it has one."""
    _vocabulary: int
    """Tokens that it tells apart."""
    _nothing: Nothing
    """Taken for an adapter and terms that are not given."""

    def __init__(self) -> None:
        self._prefix: ReadPrefix[NDArray[np.float32]] = ReadPrefix()

    @abstractmethod
    def _load(self, method: str) -> None:
        """Make a method ready to run, where it is not.

        Raises:
            EngineError: the program refuses it, or is closed.
        """

    @abstractmethod
    def _run(
        self, method: str, inputs: list[NDArray[np.generic]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        """The first results of a loaded method, which have these shapes.

        Raises:
            EngineError: the program fails, returns something else, or is closed.
        """

    def _check_writing(self, generation: Generation) -> None:
        """Compare ``generate`` with what the bundle says of it, where the program tells.

        Raises:
            EngineError: it takes or returns other sizes.
        """

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        """See ``Engine``."""
        inputs = checked_inputs(self, self._bounds, batch, values, adapter, terms, self._nothing)
        shapes: list[tuple[int, ...]] = [(len(values), *batch.candidates.shape)]
        if self.hidden_width:
            shapes.append((len(values), len(batch.positions), self.hidden_width))
        if inside:
            shapes += inside_shapes(self, len(values), len(batch.positions))
        method = METHOD
        if len(batch.prefix):
            method = BEHIND
            inputs += self._prefix.blocks(
                batch.prefix, (values, *terms), lambda: self._read(batch.prefix, values, terms)
            )
        logp, *more = self._run(method, inputs, shapes)
        return Scores(logp, more[0] if more else None, tuple(more[1:]))

    def _read(
        self, tokens: NDArray[np.int64], values: NDArray[np.float32], terms: Terms
    ) -> list[NDArray[np.float32]]:
        """The blocks of a prefix, written as a text under each row of ``values``."""
        self._load(BEHIND)
        texts = [self.text(row, terms=terms) for row in values]
        for each in texts:
            each.bound = len(tokens)  # the cache then has that many places, all filled
            each.read(tokens.tolist())
        return [
            parts[0][None] if len(parts) == 1 else np.stack(parts)
            for parts in zip(*(each.take() for each in texts), strict=True)
        ]

    def text(
        self,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
    ) -> CachedText:
        """See ``Engine``."""
        generation = check_writing(self._shown, self._generation, self, values, adapter, terms)
        self._check_writing(generation)
        self._load(COLUMNS)
        # Scattered once, since it is the same for every token of a text.
        (scattered,) = self._run(COLUMNS, [values[None]], [(1, generation.columns)])
        self._load(GENERATE)
        inputs = [scattered, *self._nothing.or_(adapter, terms)]
        return CachedText(
            lambda given, shapes: self._run(GENERATE, given, shapes),
            generation,
            self._vocabulary,
            inputs,
        )

"""A text that a program reads and writes token by token, over a cache of keys and values.

The program keeps no state (see ``export.program.cached_attention``): the cache is held here, so a
text can be taken back to any of its tokens, and several can be written in turn.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle import Generation
from ..errors import EngineError

SLOTS = 64
"""By which the cache grows: unfilled places cost time, and each growth a copy of all."""
Run = Callable[[list[NDArray[np.generic]], list[tuple[int, ...]]], list[NDArray[np.float32]]]
"""Runs a method: inputs and the shapes of its results to these."""


class Text:
    """A text as a program reads and writes it, under one row of values."""

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
        """Tokens that it may have."""
        self.length = 0
        """Tokens read so far."""

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append ``tokens``.

        Returns:
            Logits float32 ``[V]`` of the token that comes next. The array is the caller's.

        Raises:
            EngineError: no token, one outside the vocabulary, more than ``bound`` in all, logits
                that are not finite, or the program fails.
        """
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
        """Forget all tokens but the first ``length``.

        Raises:
            EngineError: there are fewer.
        """
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

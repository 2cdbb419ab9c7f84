"""Keys and values of what stands in front of every row, read once and kept as long as they serve.

They depend on the tokens, on the sensitive values and on terms. Those of the last call are kept, so
that a run of passes under the same rows of values reads them once: all passes of a step, and every
step and evaluation of an estimator that leaves the sensitive values and terms alone.
"""

import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle.program import block_shapes

Array = TypeVar("Array")
"""Keys ``[P, KV, d, L]`` or values ``[P, KV, L, d]`` of one block, float32, as an engine has them.
Blocks are lists of both in turn."""
PIECE = 128
"""Tokens that are read in one pass, at most. Of 64 each, 500 take 1.25 times as long in ONNX
Runtime."""


class ReadPrefix(Generic[Array]):
    """What a program read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = b""
        self._blocks: list[Array] = []

    def blocks(
        self,
        tokens: NDArray[np.int64],
        under: Sequence[NDArray[np.float32]],
        read: Callable[[], list[Array]],
    ) -> list[Array]:
        """The blocks of ``tokens``.

        Args:
            tokens: ``[L]``.
            under: values float32 ``[P, K]``, and terms.
            read: makes them, and may raise ``EngineError``.
        """
        digest = blake2b(tokens.tobytes() + b"/", digest_size=32)
        for each in under:
            digest.update(np.ascontiguousarray(each).data)
        with self._lock:
            if digest.digest() != self._key:
                self.forget()
                self._blocks = read()
                self._key = digest.digest()
            return self._blocks

    def forget(self) -> None:
        """Free what is kept."""
        self._key, self._blocks = b"", []


class ReadInPieces(Generic[Array]):
    """The same for a program whose graph that scores reads the prefix, too.

    Args:
        cache: ``(KV, d)`` of each block.
        longest: tokens of a row, at most.
        empty: makes an array of a shape.
        run: runs what ``score`` takes behind some blocks; gives its results, and behind them the
            pass's own blocks at positions int64 ``[Q]``.
        join: puts arrays behind each other along an axis.
    """

    def __init__(
        self,
        cache: Sequence[tuple[int, int]],
        longest: int,
        empty: Callable[[tuple[int, ...]], Array],
        run: Callable[[list[NDArray[np.generic]], NDArray[np.int64], list[Array]], list[Array]],
        join: Callable[[list[Array], int], Array],
    ) -> None:
        self._cache, self._step = cache, min(PIECE, longest)
        self._empty, self._run, self._join = empty, run, join
        self._last: ReadPrefix[Array] = ReadPrefix()

    def blocks(
        self,
        tokens: NDArray[np.int64],
        values: NDArray[np.float32],
        tuned: Sequence[NDArray[np.float32]],
    ) -> list[Array]:
        """The blocks of ``tokens``; those of none if there are none.

        Args:
            tuned: the adapter, which no block depends on, and the terms.
        """
        if not len(tokens):
            return self._read(tokens, values, tuned)
        under = (values, *tuned[1:])
        return self._last.blocks(tokens, under, lambda: self._read(tokens, values, tuned))

    def _read(
        self,
        tokens: NDArray[np.int64],
        values: NDArray[np.float32],
        tuned: Sequence[NDArray[np.float32]],
    ) -> list[Array]:
        """Each piece behind those before it."""
        found = [self._empty(shape) for shape in block_shapes(self._cache, len(values), 0)]
        none = np.zeros((1, 1), np.int64)
        for first in range(0, len(tokens), self._step):
            piece = tokens[first : first + self._step]
            row = piece if len(piece) > 1 else piece.repeat(2)  # a program takes two and more
            request = [row[None], none[0], none, values, *tuned]
            own = self._run(request, np.arange(len(piece)), found)[-len(found) :]
            for number, new in enumerate(own):
                found[number] = self._join([found[number], new], 3 - number % 2)
        return found

    def forget(self) -> None:
        """Free what is kept."""
        self._last.forget()

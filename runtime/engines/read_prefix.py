"""Keys and values of what stands in front of every row, read once and kept as long as they serve.

They depend on the tokens and on the sensitive values. Those of the last call are kept, so that a
run of passes under the same rows of values reads them once: all passes of a step, and every step
and evaluation of an estimator that leaves the sensitive values alone.
"""

import threading
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from .cached_text import CachedText


class ReadPrefix:
    """What a program read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = b""
        self._blocks: list[NDArray[np.float32]] = []

    def blocks(
        self,
        tokens: NDArray[np.int64],
        values: NDArray[np.float32],
        text: Callable[[NDArray[np.float32]], CachedText],
    ) -> list[NDArray[np.float32]]:
        """Block by block keys ``[P, KV, d, L]`` and values ``[P, KV, L, d]``.

        Args:
            tokens: ``[L]``.
            values: float32 ``[P, K]``.
            text: an empty text under values float32 ``[K]``.

        Raises:
            EngineError: as ``Text.read``.
        """
        digest = blake2b(tokens.tobytes() + b"/", digest_size=32)
        digest.update(np.ascontiguousarray(values).data)
        with self._lock:
            if digest.digest() != self._key:
                self.forget()
                read = [text(row) for row in values]
                for each in read:
                    each.bound = len(tokens)  # the cache then has that many places, all filled
                    each.read(tokens.tolist())
                self._blocks = [
                    parts[0][None] if len(parts) == 1 else np.stack(parts)
                    for parts in zip(*(each.take() for each in read), strict=True)
                ]
                self._key = digest.digest()
            return self._blocks

    def forget(self) -> None:
        """Free what is kept."""
        self._key, self._blocks = b"", []

"""Engines run a bundle's program. Each engine is one file and the only one to import its library."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """Runs the method ``score`` of a bundle's program."""

    def score(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Log-probabilities of candidate next tokens under each row of ``values``.

        Args:
            tokens: int64 ``[B, T]``, right-padded rows; every probe sees the same tokens.
            positions: int64 ``[N]``, flat indices ``b * T + t`` of the hidden states to score.
            candidates: int64 ``[N, C]``, token ids whose log-probability is wanted there.
            values: float32 ``[P, K]``, one row of sensitive values per probe.

        Returns:
            float32 ``[P, N, C]``, log-softmax over the whole vocabulary at the candidates.

        Raises:
            EngineError: a shape lies outside the bounds that the program was exported with.
        """
        ...

"""Losses of tasks whose answer is text: the mean negative log-likelihood of its tokens."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .task import Batch, Prediction, Task


class TokenLoss(Task):
    """Every scored position has the one token that stands behind it as its candidate."""

    metric_name: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False
    writes = True

    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        sums = np.stack([self._totals(probe, batch) for probe in logp])
        return np.asarray(sums[:, :, 0] / sums[:, :, 1])

    def metric(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        return self._totals(logp, batch)

    @staticmethod
    def aggregate(totals: NDArray[np.float64]) -> float:
        """Perplexity over all tokens; infinite where it exceeds float64."""
        with np.errstate(over="ignore"):
            return float(np.exp(totals[0] / totals[1]))

    def predict(self, logp: NDArray[np.float32], batch: Batch) -> list[Prediction]:
        return [
            Prediction(None, {"nll": float(nll / tokens), "tokens": float(tokens)})
            for nll, tokens in self._totals(logp, batch)
        ]

    @staticmethod
    def _totals(logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Summed negative log-likelihood and number of tokens, float64 ``[examples, 2]``."""
        nll = np.bincount(batch.row_of, weights=-logp[:, 0], minlength=batch.examples)
        count = np.bincount(batch.row_of, minlength=batch.examples)
        return np.stack([nll, count], axis=1).astype(np.float64)

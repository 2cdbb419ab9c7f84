"""A fit to few noisy gradients, since each tells something of the rows behind it.

One step from zero is nearly linear discriminant analysis: the mean of the gradient, which is how
the labels' features differ, divided by the features' curvature. Place, size and curvature come from
rows of the server's own, without labels, so that devices spend nothing on them.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .pooled_fit import loss_and_gradient, whole
from .ridge_logistic import Examples, scale_of

CLIP = 0.12
"""Of a device's mean gradient, in features whose root mean square norm is 1: of 100 devices with 60
rows of SST-2 each, half have one longer than 0.10."""
RIDGE = 0.1
"""A row: noise lies in all directions alike, and this holds it back where rows hardly vary."""
SHARE = 0.0
"""Of the model's own answer: one step of a known length cannot be weighed against it."""


@dataclass(frozen=True)
class Reference:
    """What features are like, from rows that are no device's."""

    mean: NDArray[np.float32]
    """float32 ``[D]``."""
    scale: NDArray[np.float32]
    """float32 ``[D]``."""
    moment: NDArray[np.float64]
    """float64 ``[D, D]``: mean of outer products of standardised features."""

    @classmethod
    def of(cls, states: NDArray[np.float32]) -> "Reference":
        """Of hidden states float32 ``[n, D]``."""
        mean = states.mean(axis=0, dtype=np.float64)
        scale = scale_of(states.std(axis=0, dtype=np.float64))
        found = (states - mean) / scale
        return cls(mean.astype(np.float32), scale.astype(np.float32), found.T @ found / len(found))


def mean_gradient(
    seen: Examples,
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Of a device's loss, float64 ``[max(1, R - 1), D + 1]`` (see ``pooled_fit``).

    Args:
        mean, scale: of the server's ``Reference``.
        weights: float32 ``[R, D + 1]``, of features that these standardise.
    """
    features = seen.features.astype(np.float64)
    features[:, :, :-1] = (features[:, :, :-1] - mean) / scale
    return loss_and_gradient(seen, features, weights)[1] / len(seen.gold)


@dataclass
class PrivateFit:
    """Weights of standardised features, from the gradients so far."""

    rows: int
    answers: int
    reference: Reference
    steps: int = 0
    weights: NDArray[np.float32] = field(init=False)
    """float32 ``[R, D + 1]``."""

    def __post_init__(self) -> None:
        width = len(self.reference.mean)
        self.weights = np.zeros((self.rows, width + 1), np.float32)
        curvature = self.reference.moment / self.answers + RIDGE * np.eye(width)
        self._undo = np.linalg.inv(curvature)

    @property
    def raw_weights(self) -> NDArray[np.float32]:
        """The same of the features as they are."""
        own = self.weights.astype(np.float64)
        own[:, :-1] /= self.reference.scale
        own[:, -1] -= own[:, :-1] @ self.reference.mean
        return own.astype(np.float32)

    def advance(self, gradient: NDArray[np.float64]) -> None:
        """A step of Newton's method by a mean gradient: float64 ``[max(1, R - 1), D + 1]``."""
        slopes = whole(gradient.astype(np.float32), self.rows) + RIDGE * self.weights
        step = slopes / (1 / self.answers + RIDGE)
        step[:, :-1] = slopes[:, :-1] @ self._undo
        self.weights = (self.weights - step).astype(np.float32)
        self.steps += 1

"""The losses of an estimator's probes, with no more rows in memory than one pass takes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .estimators import Estimator


def probe_losses(
    estimator: Estimator,
    batch_loss: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    values: NDArray[np.float32],
    rows: NDArray[np.float32],
    *,
    seed: int,
    step: int,
    eps: float,
) -> NDArray[np.float64]:
    """Loss float64 ``[P]`` of each probe of a step.

    Args:
        batch_loss: losses float64 ``[n]`` of the step's batch under rows float32 ``[n, K]``.
        values: float32 ``[K]``.
        rows: room for the rows of one pass, float32 ``[n, K]``; overwritten.
    """
    losses = np.empty(estimator.probes, dtype=np.float64)
    for first in range(0, len(losses), len(rows)):
        group = rows[: len(losses) - first]
        estimator.perturb(values, group, seed=seed, step=step, eps=eps, first=first)
        losses[first : first + len(group)] = batch_loss(group)
    return losses

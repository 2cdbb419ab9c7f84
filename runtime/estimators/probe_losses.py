"""The losses of an estimator's probes, with no more rows in memory than one pass takes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import Estimator


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
    """Loss float64 ``[P, examples]`` of each probe of a step on each example.

    Args:
        batch_loss: losses float64 ``[n, examples]`` of the step's batch under rows float32
            ``[n, K]``.
        values: float32 ``[K]``.
        rows: room for the rows of one pass, float32 ``[n, K]``; overwritten.
    """
    parts = []
    for first in range(0, estimator.probes, len(rows)):
        group = rows[: estimator.probes - first]
        estimator.perturb(values, group, seed=seed, step=step, eps=eps, first=first)
        parts.append(batch_loss(group))
    return np.concatenate(parts)

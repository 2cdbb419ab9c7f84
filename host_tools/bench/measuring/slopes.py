"""What a two-point estimate is worth by engine and eps: slopes of one batch along the same noises.

A step follows the slope of a loss along a noise z, ``(L(v + eps z) - L(v - eps z)) / 2 eps``.
What noise the loss itself has enters it divided by eps. Slopes at a small eps by an engine without
such noise are the true ones. Those of another engine with a correlation r to them are worth r
squared as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.estimators.noise import perturb

DIRECTIONS = 12
Losses = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Values float32 ``[2, K]`` to the losses of one batch, float64 ``[2]``."""


def slopes(losses: Losses, values: NDArray[np.float32], eps: float) -> NDArray[np.float64]:
    """Slopes along ``DIRECTIONS`` noises, the same at every call: float64 ``[DIRECTIONS]``."""
    rows = np.empty((2, len(values)), np.float32)
    found = []
    for step in range(DIRECTIONS):
        perturb(values, rows, (eps, -eps), seed=11, step=step, kind="rademacher")
        up, down = losses(rows)
        found.append((up - down) / (2 * eps))
    return np.array(found)


def described(
    found: Mapping[str, Mapping[float, NDArray[np.float64]]], quiet: str, sizes: Sequence[float]
) -> dict[str, dict[str, dict[str, float]]]:
    """By engine and eps the slopes' root mean square, and their correlation with the true ones.

    Args:
        found: by engine and eps, as ``slopes`` gives them.
        quiet: the engine whose slopes at the least eps are the true ones.
    """
    true = found[quiet][min(sizes)]
    return {
        name: {
            f"{eps:g}": {
                "root_mean_square": float(np.sqrt(np.mean(own[eps] ** 2))),
                "correlation": float(np.corrcoef(own[eps], true)[0, 1]),
            }
            for eps in sizes
        }
        for name, own in found.items()
    }

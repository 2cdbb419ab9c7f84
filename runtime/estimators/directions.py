"""What estimators of several directions share: a row for each, and a step along their mean."""

import numpy as np
from numpy.typing import NDArray

from .noise import NoiseKind, add_noise, perturb


def perturb_each(
    values: NDArray[np.float32],
    rows: NDArray[np.float32],
    *,
    seed: int,
    step: int,
    eps: float,
    first: int,
    kind: NoiseKind,
) -> None:
    """Write ``values + eps z_i`` into ``rows`` (float32 ``[n, K]``), ``i`` from ``first`` on."""
    for row in range(len(rows)):
        room, probe = rows[row : row + 1], first + row
        perturb(values, room, (eps,), seed=seed, step=step, probe=probe, kind=kind)


def apply_mean(
    values: NDArray[np.float32],
    scalars: NDArray[np.float16],
    *,
    seed: int,
    step: int,
    lr: float,
    kind: NoiseKind,
) -> None:
    """``values += float32(-lr * scalar_i / q) * z_i`` for each of the q directions in turn.

    The coefficient is a float64 product, rounded once.
    """
    for probe, scalar in enumerate(scalars):
        coefficient = -lr * float(scalar) / len(scalars)
        add_noise(values, coefficient, seed=seed, step=step, probe=probe, kind=kind)

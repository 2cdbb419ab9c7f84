"""How noisy the program's loss is, and the eps that this calls for.

8-bit dynamic activations requantise whenever any value moves, so the loss of a quantised program
jumps by a noise sigma even under a perturbation far too small to matter. A two-point estimate
inherits it: its error is ``sigma * sqrt(2) / (2 eps)``, against the true projected gradient, which
does not depend on eps until curvature shows. MeZO's eps of 1e-3 drowns in it;
the smallest eps at which the error is well under the gradient is the one to take: larger ones only
add curvature.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..estimators.noise import MAX_STEP, perturb

LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DIRECTIONS, REPEATS = 4, 8
"""Pairs of losses at each eps of the ladder, and at ``TINY``."""
TINY = 1e-4
"""Perturbation at which the noise is measured, from ``L(v + t z) + L(v - t z)``: what is linear in
t cancels, what is quadratic is far too small to show."""
WANTED_RATIO = 1 / 3
"""Largest accepted error of the estimate, in typical projected gradients."""


@dataclass(frozen=True)
class LossNoise:
    """The measurement and the choice."""

    loss: float
    """Batch loss at the unperturbed values."""
    sigma: float
    """Standard deviation of the batch loss under perturbations that should not change it."""
    eps: float
    """The chosen one."""
    adequate: bool
    """Whether the chosen eps meets ``WANTED_RATIO``; if not, it is the largest of the ladder."""


def measure_loss_noise(
    batch_loss: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    values: NDArray[np.float32],
    *,
    seed: int,
) -> LossNoise:
    """Measure the loss noise at ``values`` and choose eps. Deterministic for a seed.

    Takes ``1 + 2 * REPEATS + 2 * DIRECTIONS * len(LADDER)`` forwards, each pair along a direction
    of its own. The typical projected gradient is pooled over the ladder: its square is the mean of
    the squared estimates less the noise's share, weighted by how well each rung knows it.

    Args:
        batch_loss: losses float64 ``[P]`` of one fixed batch under rows float32 ``[P, K]``.
        values: float32 ``[K]``.
        seed: of the directions, which no training step uses.

    Raises:
        TuningError: a loss is not finite.
    """
    first = MAX_STEP - REPEATS - DIRECTIONS * len(LADDER)
    rows = np.empty((2, len(values)), dtype=np.float32)

    def losses(number: int, scales: Sequence[float]) -> NDArray[np.float64]:
        room = rows[: len(scales)]
        perturb(values, room, scales, seed=seed, step=first + number)
        found = batch_loss(room)
        if not np.isfinite(found).all():
            raise TuningError(
                f"loss is not finite near the start (perturbation {max(scales):g}): check the data"
            )
        return found

    loss = float(losses(0, (0.0,))[0])
    sums = [losses(number, (TINY, -TINY)).sum() for number in range(REPEATS)]
    sigma = float(np.std(sums, ddof=1)) / math.sqrt(2)
    number = REPEATS
    squares = []
    for eps in LADDER:
        differences = []
        for _ in range(DIRECTIONS):
            plus, minus = losses(number, (eps, -eps))
            differences.append((plus - minus) / (2 * eps))
            number += 1
        squares.append(float(np.mean(np.square(differences))))
    errors = [sigma * math.sqrt(2) / (2 * eps) for eps in LADDER]
    signal = _pooled(np.array(squares), np.square(errors))
    good = [
        eps
        for eps, error in zip(LADDER, errors, strict=True)
        if signal > 0 and error / signal <= WANTED_RATIO
    ]
    return LossNoise(loss, sigma, good[0] if good else LADDER[-1], bool(good))


def _pooled(squares: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    """Root of the mean squared gradient from squared estimates and the noise's share of each.

    A mean square scatters in proportion to its expectation, signal plus noise: that gives the
    weights. They need the signal, so start from the largest eps, which knows it best.
    """
    signal = max(float(squares[-1] - noise[-1]), 0.0)
    for _ in range(2):
        spread = signal + noise
        if not spread.all():
            return math.sqrt(signal)
        weights = 1 / np.square(spread)
        signal = max(float(weights @ (squares - noise) / weights.sum()), 0.0)
    return math.sqrt(signal)

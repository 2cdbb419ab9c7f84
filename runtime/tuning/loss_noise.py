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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..estimators.noise import MAX_STEP, perturb

LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TINY = 1e-4
"""Perturbation at which the noise is measured, from ``L(v + t z) + L(v - t z)``: what is linear in
t cancels, what is quadratic is far too small to show."""
WANTED_RATIO = 1 / 3
"""Largest accepted error of the estimate, in typical projected gradients."""


@dataclass(frozen=True)
class Rung:
    """What a two-point estimate is worth at one eps (root mean squares over directions)."""

    eps: float
    estimate: float
    """Standard deviation of the estimates, noise included."""
    error: float
    """That the loss noise causes in one estimate: ``sigma * sqrt(2) / (2 eps)``."""
    ratio: float
    """``error`` in typical projected gradients; infinite where noise explains all of it."""


@dataclass(frozen=True)
class LossNoise:
    """The measurement and the choice."""

    loss: float
    """Batch loss at the unperturbed values."""
    sigma: float
    """Standard deviation of the batch loss under perturbations that should not change it."""
    rungs: tuple[Rung, ...]
    eps: float
    """The chosen one."""
    adequate: bool
    """Whether the chosen eps meets ``WANTED_RATIO``; if not, it is the best of the ladder."""
    forwards: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite ratio is None."""
        fields = asdict(self)
        fields["rungs"] = [
            {**rung, "ratio": rung["ratio"] if math.isfinite(rung["ratio"]) else None}
            for rung in fields["rungs"]
        ]
        return fields


def measure_loss_noise(
    batch_loss: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    values: NDArray[np.float32],
    *,
    seed: int,
    ladder: Sequence[float] = LADDER,
    directions: int = 4,
    repeats: int = 8,
) -> LossNoise:
    """Measure the loss noise at ``values`` and choose eps. Deterministic for a seed.

    Takes ``1 + 2 * repeats + 2 * directions * len(ladder)`` forwards, each pair along a direction
    of its own. The typical projected gradient is pooled over the ladder: its square is the mean of
    the squared estimates less the noise's share, weighted by how well each rung knows it.

    Args:
        batch_loss: losses float64 ``[P]`` of one fixed batch under rows float32 ``[P, K]``.
        values: float32 ``[K]``.
        seed: of the directions, which no training step uses.

    Raises:
        TuningError: a loss is not finite.
    """
    ladder = sorted(ladder)
    first = MAX_STEP - repeats - directions * len(ladder)
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
    sums = [losses(number, (TINY, -TINY)).sum() for number in range(repeats)]
    sigma = float(np.std(sums, ddof=1)) / math.sqrt(2)
    number = repeats
    squares = []
    for eps in ladder:
        differences = []
        for _ in range(directions):
            plus, minus = losses(number, (eps, -eps))
            differences.append((plus - minus) / (2 * eps))
            number += 1
        squares.append(float(np.mean(np.square(differences))))
    errors = [sigma * math.sqrt(2) / (2 * eps) for eps in ladder]
    signal = _pooled(np.array(squares), np.square(errors))
    rungs = tuple(
        Rung(eps, math.sqrt(square), error, error / signal if signal > 0 else math.inf)
        for eps, square, error in zip(ladder, squares, errors, strict=True)
    )
    good = [rung for rung in rungs if rung.ratio <= WANTED_RATIO]
    chosen = good[0] if good else rungs[-1]
    forwards = 1 + 2 * repeats + 2 * directions * len(ladder)
    return LossNoise(loss, sigma, rungs, chosen.eps, bool(good), forwards)


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

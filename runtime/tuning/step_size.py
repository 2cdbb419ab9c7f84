"""The learning rate that the start of a run calls for, from trial steps.

A trial takes the estimator's step from one batch and looks at another batch along it: how fast the
loss falls there (its slope) and how soon it turns (its curvature). A step of rate lr is expected to
change the loss by ``-lr * slope + lr**2 / 2 * curvature``, so ``slope / curvature`` is the best
rate for a single step from here. Both come from the loss at the values and at ``eps`` to either
side, where the loss noise was found small enough.

That rate is too high for a run: the slope shrinks within a hundred steps, as what is easy is
learnt, while batches and perturbations stay as noisy. ``SHARE`` of it is taken. On SmolLM2 and
SST-2 (400 forwards, linear schedule) the first step's best was 8e-4 for two-point steps; the
hand-chosen peak that learnt well was 0.13 of it. Standard errors of the slope were 16 to 42 % of
it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..estimators import Estimator
from ..estimators.noise import MAX_STEP
from ..scoring.batch_loss import Look
from ..scoring.values import Values
from ..settings import Settings

SHARE = 1 / 6
"""Share of the first step's best rate that is taken."""
TRIALS = 8
_FIRST = MAX_STEP - 4096
"""Number of the first trial's noise: above all training steps, below those of the loss noise."""


@dataclass(frozen=True)
class StepSize:
    """The measurement and the choice; means over the trials."""

    slope: float
    """Loss decrease on another batch, by unit of the learning rate, of a small step."""
    slope_error: float
    """Standard error of ``slope``."""
    curvature: float
    """Second derivative of that loss by the learning rate."""
    length: float
    """What a value moves by (root mean square), by unit of the learning rate."""
    lr: float
    """The chosen one."""
    forwards: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def measure_step_size(
    make: Callable[[], Estimator],
    look_at: Callable[[int], Look],
    values: NDArray[np.float32],
    settings: Settings,
) -> StepSize:
    """Choose the learning rate for a run of ``settings`` from ``values``. Deterministic.

    Takes ``TRIALS * (P + 3)`` forwards. The rate is bounded by what moves a value by ``eps`` in a
    first step: further off, nothing was looked at.

    Args:
        make: gives a fresh estimator of the run.
        look_at: the run's batch of that number, to be looked at.
        values: float32 ``[K]``.
        settings: with ``eps`` a number; their seed is that of the trials.

    Raises:
        TuningError: a loss is not finite, or no step from one batch lowers the loss of another.
    """
    eps = settings.options.perturbation
    slopes, curvatures, lengths = np.zeros((3, TRIALS))
    probes = 0
    for trial in range(TRIALS):
        estimator = make()
        probes = estimator.probes
        key = {"seed": settings.seed, "step": _FIRST + trial}
        measured = estimator.measure(look_at(2 * trial), Values(values), eps=eps, **key)
        _need_finite(measured.losses)
        estimate = np.zeros_like(values)
        estimator.apply(Values(estimate), measured.scalars, lr=-1.0, **key)
        lengths[trial] = np.sqrt(np.mean(np.square(estimate, dtype=np.float64)))
        if lengths[trial] == 0:
            continue
        reach = eps / lengths[trial]
        looks = np.stack([values - np.float32(along) * estimate for along in (reach, 0.0, -reach)])
        ahead, here, behind = _need_finite(look_at(2 * trial + 1).losses(looks)).mean(axis=1)
        slopes[trial] = (behind - ahead) / (2 * reach)
        curvatures[trial] = (ahead + behind - 2 * here) / reach**2
    slope, curvature, length = slopes.mean(), curvatures.mean(), lengths.mean()
    if slope <= 0:
        raise TuningError(
            "lr 'auto' found no descent: steps from one batch do not lower the loss of the next; "
            "raise batch_size, or give lr as a number"
        )
    furthest = eps / length
    best = min(slope / curvature, furthest) if curvature > 0 else furthest
    return StepSize(
        slope=float(slope),
        slope_error=float(slopes.std(ddof=1) / np.sqrt(TRIALS)),
        curvature=float(curvature),
        length=float(length),
        lr=float(f"{SHARE * best:.2g}"),
        forwards=TRIALS * (probes + 3),
    )


def _need_finite(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(losses).all():
        raise TuningError("loss is not finite near the start: check the data")
    return losses

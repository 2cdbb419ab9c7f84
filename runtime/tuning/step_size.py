"""The learning rate that the start of a run calls for, from trial steps.

A trial takes the estimator's step from one batch and looks at another batch along it: how fast the
loss falls there (its slope) and how soon it turns (its curvature). A step of rate lr is expected to
change the loss by ``-lr * slope + lr**2 / 2 * curvature``, so ``slope / curvature`` is the best
rate for a single step from here. Both come from the loss at the values and at ``eps`` to either
side, where the loss noise was found small enough.

That rate is too high for a run: the slope shrinks within a hundred steps, as what is easy is
learnt, while batches and perturbations stay as noisy. ``SHARE`` of it is taken. On SmolLM2 and
SST-2 (400 forwards, linear schedule) the first step's best was 8e-4 for two-point steps and 3e-3
for leave-one-out with 8 directions; hand-chosen peaks that learnt well were 0.13 of the former and
0.17 to 0.33 of the latter. Standard errors of the slope were 16 to 42 % of it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..estimators import make_estimator
from ..estimators.noise import MAX_STEP
from ..estimators.probe_losses import probe_losses
from ..settings import Settings

SHARE = 1 / 6
"""Of the first step's best rate."""
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
    batch_loss: Callable[[int, NDArray[np.float32]], NDArray[np.float64]],
    values: NDArray[np.float32],
    settings: Settings,
    at_once: int,
) -> StepSize:
    """Choose the learning rate for a run of ``settings`` from ``values``. Deterministic.

    Takes ``TRIALS * (P + 3)`` forwards. The rate is bounded by what moves a value by ``eps`` in a
    first step: further off, nothing was looked at.

    Args:
        batch_loss: losses float64 ``[n]`` of the run's batch of that number under rows float32
            ``[n, K]``.
        values: float32 ``[K]``.
        settings: with ``eps`` a number.
        at_once: rows that one pass takes.

    Raises:
        TuningError: a loss is not finite, or no step from one batch lowers the loss of another.
    """
    eps = settings.resolved_eps
    slopes, curvatures, lengths = np.zeros((3, TRIALS))
    probes = 0
    for trial in range(TRIALS):
        estimator = make_estimator(settings)
        probes = estimator.probes
        rows = np.empty((min(at_once, probes), len(values)), dtype=np.float32)
        key = {"seed": settings.seed, "step": _FIRST + trial}
        seen = partial(_as_one_example, batch_loss, 2 * trial)
        losses = _need_finite(probe_losses(estimator, seen, values, rows, eps=eps, **key))
        estimate = np.zeros_like(values)
        estimator.apply(estimate, estimator.scalars(losses, eps=eps), lr=-1.0, **key)
        lengths[trial] = np.sqrt(np.mean(np.square(estimate, dtype=np.float64)))
        if lengths[trial] == 0:
            continue
        reach = eps / lengths[trial]
        looks = np.stack([values - np.float32(along) * estimate for along in (reach, 0.0, -reach)])
        ahead, here, behind = _need_finite(batch_loss(2 * trial + 1, looks))
        slopes[trial] = (behind - ahead) / (2 * reach)
        curvatures[trial] = (ahead + behind - 2 * here) / reach**2
    slope, curvature, length = slopes.mean(), curvatures.mean(), lengths.mean()
    if slope <= 0:
        raise TuningError(
            "lr 'auto' found no descent: steps from one batch do not lower the loss of the next; "
            "raise batch_size or directions, or give lr as a number"
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


def _as_one_example(
    batch_loss: Callable[[int, NDArray[np.float32]], NDArray[np.float64]],
    number: int,
    rows: NDArray[np.float32],
) -> NDArray[np.float64]:
    return batch_loss(number, rows)[:, None]


def _need_finite(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(losses).all():
        raise TuningError("loss is not finite near the start: check the data")
    return losses

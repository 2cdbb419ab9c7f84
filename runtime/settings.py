"""The settings of a tuning run: everything but the data that its result depends on."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import TuningError
from .estimators import ESTIMATORS
from .estimators.noise import NOISE_KINDS, NoiseKind

Schedule = Literal["constant", "linear", "cosine"]

FIXED = ("estimator", "noise", "directions", "momentum", "cone", "stratified")
"""Settings that a run keeps from its first step to its last."""
_BEFORE: dict[str, Any] = {
    "directions": 1,
    "momentum": 0.99,
    "cone": 0.2,
    "stratified": False,
}
"""Settings that older journals do not have, with the value that those runs had in effect."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the journal's header stores them, with numbers for ``auto``.

    Raises:
        TuningError: a value makes no sense; the message names the field.
    """

    seed: int = 0
    """Base seed of noise and data order, 0 to 2**64 - 1."""
    steps: int = 1000
    """Steps of the whole run, interruptions included; ``readout`` ends sooner where it has seen all
    examples."""
    batch_size: int = 16
    """Examples a step."""
    lr: float | Literal["auto"] = 2e-5
    """Peak learning rate: a value moves by ``lr * scalar`` (times the noise) in a step; ``auto``
    finds it by trial steps at the start; for ``gauss-newton`` and ``readout``, which solve for
    their step, 1."""
    eps: float | Literal["auto"] = "auto"
    """Size of the perturbation; ``auto`` measures the program's loss noise at the start. For
    ``gauss-newton`` how far a probe moves a typical answer's logit, by ``auto`` the usual one."""
    schedule: Schedule = "constant"
    """How the learning rate goes from its peak, after the warm-up, to step ``steps``."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    eval_every: int = 100
    """Steps between held-out evaluations; 0 evaluates at the start and the end only."""
    estimator: str = "two-point"
    """Name in ``ESTIMATORS``: how losses become a step."""
    directions: int = 0
    """Directions that a step tries and averages; 0 takes the estimator's usual number (of
    ``readout``, none)."""
    momentum: float = 0.99
    """Estimator ``momentum``: share of the old momentum that a step keeps."""
    cone: float = 0.2
    """Estimator ``momentum``: cosine between its directions and the momentum."""
    noise: NoiseKind = "rademacher"
    stratified: bool = True
    """Whether every batch has the labels in their overall proportions."""
    best_by: Literal["metric", "loss"] = "metric"
    """What makes an evaluated step the best; equal metrics are told apart by loss."""
    loss_jump: float = 2.0
    """A batch loss over the last evaluation's by more than this many starting losses is skipped."""
    scalar_jump: float = 10.0
    """A step whose scalars (those that move the values) are above this many root mean squares of
    the last 64 steps' is skipped as a runaway."""
    max_skips: int = 10
    """Skipped steps in a row after which the run stops."""

    def __post_init__(self) -> None:
        def need(good: bool, field: str, wanted: str) -> None:
            if not good:
                raise TuningError(f"setting {field}={getattr(self, field)!r} must be {wanted}")

        whole = ("seed", "steps", "batch_size", "warmup", "eval_every", "max_skips", "directions")
        for field in whole:
            value = getattr(self, field)
            need(isinstance(value, int) and not isinstance(value, bool), field, "a whole number")
        for field in ("loss_jump", "scalar_jump", "momentum", "cone"):
            value = getattr(self, field)
            need(isinstance(value, (int, float)) and math.isfinite(value), field, "a number")
        need(0 <= self.seed < 2**64, "seed", "between 0 and 2**64 - 1")
        need(1 <= self.steps < 2**47, "steps", "at least 1")
        need(self.batch_size >= 1, "batch_size", "at least 1")
        for field in ("lr", "eps"):
            value = getattr(self, field)
            if value != "auto":
                need(isinstance(value, (int, float)), field, "a number or 'auto'")
                need(math.isfinite(value) and value > 0, field, "above 0 or 'auto'")
        need(self.schedule in get_args(Schedule), "schedule", "constant, linear or cosine")
        need(self.warmup >= 0, "warmup", "at least 0")
        need(self.eval_every >= 0, "eval_every", "at least 0")
        need(self.estimator in ESTIMATORS, "estimator", f"one of {', '.join(ESTIMATORS)}")
        kind = ESTIMATORS[self.estimator]
        if self.directions == 0:
            object.__setattr__(self, "directions", kind.usual)
        good = kind.least <= self.directions <= 32768
        need(good, "directions", f"{kind.least} to 32768 for {self.estimator}")
        need(kind.make is not None or not self.directions, "directions", "0 for readout")
        need(0 <= self.momentum < 1, "momentum", "at least 0 and below 1")
        need(0 <= self.cone < 1, "cone", "at least 0 and below 1")
        need(isinstance(self.stratified, bool), "stratified", "true or false")
        need(self.noise in NOISE_KINDS, "noise", " or ".join(NOISE_KINDS))
        need(self.best_by in ("metric", "loss"), "best_by", "'metric' or 'loss'")
        need(self.loss_jump > 0, "loss_jump", "above 0")
        need(self.scalar_jump > 1, "scalar_jump", "above 1")
        need(self.max_skips >= 1, "max_skips", "at least 1")

    @property
    def resolved_eps(self) -> float:
        """``eps`` as a number, once it has been chosen."""
        if self.eps == "auto":
            raise TuningError("eps is 'auto'; choose it with loss_noise.measure_loss_noise first")
        return self.eps

    def learning_rate(self, step: int) -> float:
        """Learning rate of step ``step`` (0-based), the same bits on every platform."""
        if self.lr == "auto":
            raise TuningError("lr is 'auto'; choose it with step_size.measure_step_size first")
        if step < self.warmup:
            return self.lr * ((step + 1) / self.warmup)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "linear":
            return self.lr * max(0.0, 1.0 - done)
        if self.schedule == "cosine":
            return self.lr * max(0.0, 0.5 * (1.0 + _cos_pi(min(1.0, done))))
        return self.lr

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values by field name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Settings":
        """Inverse of ``to_dict``, of older versions too; unknown or missing fields are refused."""
        fields = {**_BEFORE, **fields}
        names = {field.name for field in dataclasses.fields(cls)}
        odd = sorted(set(fields) ^ names)
        if odd:
            raise TuningError(f"settings do not fit this version: field {odd[0]!r}")
        return cls(**fields)


def _cos_pi(x: float) -> float:
    """cos(pi * x) for x in [0, 1], from +, * and / alone.

    ``math.cos`` may differ in its last bit between C libraries, and a replay must not.
    """
    t = math.pi * (0.5 - x)  # cos(pi x) = sin(t), |t| <= pi / 2: the series converges fast
    term = total = t
    for k in range(1, 12):
        term *= -t * t / ((2 * k) * (2 * k + 1))
        total += term
    return total

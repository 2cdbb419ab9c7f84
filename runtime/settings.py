"""The settings of a tuning run: everything but the data that its result depends on."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import TuningError

Schedule = Literal["constant", "linear", "cosine"]
NoiseKind = Literal["rademacher", "gaussian"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)

FIXED = ("estimator", "noise", "directions", "stratified")
"""Settings that a run keeps from its first step to its last."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the journal's header stores them, with numbers for ``auto``.

    None leaves a setting to what suits the run, which ``estimators.complete`` fills in, so
    Python and the command line choose the same.

    Raises:
        TuningError: a value makes no sense; the message names the field.
    """

    seed: int = 0
    """Base seed of noise and data order, 0 to 2**64 - 1."""
    steps: int | None = None
    """Steps of the whole run, interruptions included."""
    batch_size: int = 16
    """Examples a step."""
    lr: float | Literal["auto"] | None = None
    """Peak learning rate: a value moves by ``lr * scalar`` (times the noise) in a step; ``auto``
    finds it by trial steps at the start. Estimators that solve for their step have it at 1."""
    eps: float | Literal["auto"] | None = None
    """Size of the perturbation; ``auto`` measures the program's loss noise at the start."""
    schedule: Schedule | None = None
    """How the learning rate goes from its peak, after the warm-up, to step ``steps``."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    eval_every: int | None = None
    """Steps between held-out evaluations; 0 evaluates at the start and the end only."""
    estimator: str | None = None
    """Name in ``estimators.ESTIMATORS``: how looks at a batch become a step."""
    directions: int | None = None
    """Directions that a step tries and averages; 0 is None."""
    noise: NoiseKind = "rademacher"
    stratified: bool = True
    """Whether every batch has the labels in their overall proportions."""
    remember: bool | None = None
    """Whether an estimator keeps words of the texts beside what it learns from them; None: if it
    can. A run that keeps them stops by forgetting, one that forgot begins again by being told."""
    best_by: Literal["metric", "loss"] = "metric"
    """What makes an evaluated step the best; equal metrics are told apart by loss."""
    loss_jump: float = 2.0
    """A batch is skipped if its loss exceeds the last evaluation's by this many starting losses."""
    scalar_jump: float = 10.0
    """A step whose scalars (those that move the values) are above this many root mean squares of
    the last 64 steps' is skipped as a runaway."""
    max_skips: int = 10
    """Skipped steps in a row after which the run stops."""

    def __post_init__(self) -> None:
        def need(good: bool, field: str, wanted: str) -> None:
            if not good:
                raise TuningError(f"setting {field}={getattr(self, field)!r} must be {wanted}")

        whole = ("seed", "batch_size", "warmup", "max_skips")
        open_to_choice = ("steps", "eval_every", "directions")
        for field in (*whole, *(f for f in open_to_choice if getattr(self, f) is not None)):
            value = getattr(self, field)
            need(isinstance(value, int) and not isinstance(value, bool), field, "a whole number")
        for field in ("loss_jump", "scalar_jump"):
            value = getattr(self, field)
            need(_is_number(value), field, "a number")
        need(0 <= self.seed < 2**64, "seed", "between 0 and 2**64 - 1")
        need(self.steps is None or 1 <= self.steps < 2**47, "steps", "at least 1")
        need(self.batch_size >= 1, "batch_size", "at least 1")
        for field in ("lr", "eps"):
            value = getattr(self, field)
            if value not in ("auto", None):
                need(_is_number(value) and value > 0, field, "a number above 0, or 'auto'")
        known = (None, *get_args(Schedule))
        need(self.schedule in known, "schedule", "constant, linear or cosine")
        need(self.warmup >= 0, "warmup", "at least 0")
        need((self.eval_every or 0) >= 0, "eval_every", "at least 0")
        named = self.estimator is None or isinstance(self.estimator, str)
        need(named, "estimator", "a name")
        need(0 <= (self.directions or 0) <= 32768, "directions", "0 to 32768")
        need(isinstance(self.stratified, bool), "stratified", "true or false")
        need(self.remember is None or isinstance(self.remember, bool), "remember", "true or false")
        need(self.noise in NOISE_KINDS, "noise", " or ".join(NOISE_KINDS))
        need(self.best_by in ("metric", "loss"), "best_by", "'metric' or 'loss'")
        need(self.loss_jump > 0, "loss_jump", "above 0")
        need(self.scalar_jump > 1, "scalar_jump", "above 1")
        need(self.max_skips >= 1, "max_skips", "at least 1")

    @property
    def resolved_eps(self) -> float:
        """``eps`` as a number, once it has been chosen."""
        return self._chosen("eps")

    @property
    def resolved_steps(self) -> int:
        """``steps``, once it has been chosen."""
        if self.steps is None:
            raise TuningError("setting steps is still open; complete the settings first")
        return self.steps

    def learning_rate(self, step: int) -> float:
        """Learning rate of step ``step`` (0-based), the same bits on every platform."""
        lr = self._chosen("lr")
        if step < self.warmup:
            return lr * ((step + 1) / self.warmup)
        done = (step - self.warmup) / max(1, self.resolved_steps - self.warmup)
        if self.schedule == "linear":
            return lr * max(0.0, 1.0 - done)
        if self.schedule == "cosine":
            return lr * max(0.0, 0.5 * (1.0 + _cos_pi(min(1.0, done))))
        return lr

    def _chosen(self, field: str) -> float:
        value = getattr(self, field)
        if value in ("auto", None):
            raise TuningError(f"setting {field} is {value!r}: it is measured when a run starts")
        return float(value)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values by field name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Settings":
        """Inverse of ``to_dict``; unknown or missing fields are refused."""
        names = {field.name for field in dataclasses.fields(cls)}
        odd = sorted(set(fields) ^ names)
        if odd:
            raise TuningError(f"settings do not fit this version: field {odd[0]!r}")
        return cls(**fields)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


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

"""Options that several estimators have: a learning rate and its schedule, the size of noise.

Each estimator's own options are a subclass, which may have other defaults.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import TuningError
from ..options import option
from ..settings import Options

Schedule = Literal["constant", "linear", "cosine"]

RATE = "Peak learning rate"
SIZE = "Size of the perturbation"


@dataclass(frozen=True)
class Scheduled(Options):
    """Of an estimator whose steps have a learning rate."""

    lr: float
    """Its peak; each estimator has a default of its own."""
    schedule: Schedule = option(
        "constant", "How the learning rate goes from its peak to the last step."
    )
    warmup: int = option(0, "Steps over which the learning rate rises to its peak.", least=0)

    def learning_rate(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return self.lr * ((step + 1) / self.warmup)
        done = (step - self.warmup) / max(1, steps - self.warmup)
        if self.schedule == "linear":
            return self.lr * max(0.0, 1.0 - done)
        if self.schedule == "cosine":
            return self.lr * max(0.0, 0.5 * (1.0 + _cos_pi(min(1.0, done))))
        return self.lr


@dataclass(frozen=True)
class Perturbing(Scheduled):
    """Of an estimator that compares losses of values with noise added."""

    eps: float | Literal["auto"] = option(
        "auto", f"{SIZE}; 'auto' measures the loss noise of the program.", above=0
    )

    @property
    def perturbation(self) -> float:
        if self.eps == "auto":
            raise TuningError("setting eps is 'auto': it is measured when a run starts")
        return self.eps


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

"""Options that several estimators have: a learning rate and its schedule, the size of noise.

Each estimator's own options are a subclass, which may have other defaults.
"""

from dataclasses import dataclass
from typing import Literal

from ..errors import TuningError
from ..options import option
from ..settings import Options

Schedule = Literal["constant", "linear"]

RATE = "Learning rate"
SIZE = "Size of the perturbation"


@dataclass(frozen=True)
class Scheduled(Options):
    """Of an estimator whose steps have a learning rate."""

    lr: float
    """Of the first step; each estimator has a default of its own."""
    schedule: Schedule = option(
        "constant", "Whether the learning rate stays, or falls linearly to 0 over the run."
    )

    def learning_rate(self, step: int, steps: int) -> float:
        if self.schedule == "linear":
            return self.lr * max(0.0, 1.0 - step / steps)
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

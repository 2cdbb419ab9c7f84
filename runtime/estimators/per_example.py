"""Two-point SPSA with noise of each small group of examples' own: many numbers from one batch.

Noise shared by a batch gives one number. Here group g of the batch has its own ``z_g`` (probe g of
the step's noise), so that one look at the batch on either side gives G numbers:

    s_g = (L_g(v + eps z_g) - L_g(v - eps z_g)) / (2 eps)
    r  <- 0.9 r + 0.1 mean_g s_g^2          (at the first step, that mean)
    v  <- v - lr / (G sqrt(r)) sum_g s_g z_g

* A group has as many examples as there are answers, one of each, since a batch has its labels in
  turn: what all examples share (towards one answer, away from the other: half of an example's
  squared gradient on SST-2) cancels inside a group instead of being noise. Without answers, a group
  is one example.
* Divided by the running root mean square of the scalars, ``lr`` is what a value moves by, on any
  task. r follows from the journaled scalars alone.
* Noise moves the values of the middle blocks only. On SmolLM2, blocks 8 to 19 of 30 hold 76 % of
  the squared mean gradient of SST-2 with 17 % of the values; the first ones hold next to none of it
  and 28 % of the values lie in the last product (gradients of 64 training rows; SMS spam alike).

Eight passes of two rows each take as long as one of sixteen (0.99 of the time on SmolLM2, one
thread; sixteen passes of one row 1.04), so that the program needs no rows by probe.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scoring.batch_loss import Look
from ..scoring.part import Part
from ..scoring.values import Values
from ..settings import RATE, SIZE, Perturbing, Schedule, Settings, option
from .estimator import EstimatorSpec, Measured, RunContext, Shape, StepContext
from .noise import add_noise, perturb

MIDDLE = 8 / 30, 20 / 30
"""Depths between which noise moves the values."""
KEPT = 0.9
"""Share of the scalars' old mean square that a step keeps."""


@dataclass(frozen=True)
class PerExampleOptions(Perturbing):
    """Of a run with noise for each few examples."""

    lr: float = option(9e-3, f"{RATE}: about what a value moves by in a step.", above=0)
    eps: float = option(1.5e-2, f"{SIZE}.", above=0)
    schedule: Schedule = option(
        "linear", "How the learning rate goes from its peak to the last step."
    )
    groups: int | None = option(
        None,
        "Groups of examples a step, each with its own noise. Default: groups of one example of "
        "each answer, or of one where there is nothing to choose.",
        least=1,
        fixed=True,
    )

    @property
    def forwards(self) -> int:
        return 2


@dataclass
class PerExample:
    """Its state is ``mean_square``, float64 ``[1]``: r."""

    groups: int
    """G."""
    batch_size: int
    first: int
    last: int
    """Noise moves the values ``[first, last)``."""

    signs = 0

    def __post_init__(self) -> None:
        self.state: dict[str, NDArray[Any]] = {}

    @property
    def probes(self) -> int:
        """2: every example is scored once on either side."""
        return 2

    @property
    def scalar_count(self) -> int:
        """G: the projected gradients."""
        return self.groups

    def memory_bytes(self, examples: int) -> int:
        return 0

    def _group_of_each(self) -> NDArray[np.int64]:
        """int64 ``[batch]``, the group of each example; consecutive ones share it."""
        return np.arange(self.batch_size) * self.groups // self.batch_size

    def measure(self, look: Look, values: Values, at: StepContext) -> Measured:
        losses = np.empty((2, self.batch_size), dtype=np.float64)
        rows = np.repeat(values.sensitive[None], 2, axis=0)
        moved, pair = values.sensitive[self.first : self.last], rows[:, self.first : self.last]
        groups = self._group_of_each()
        for group in range(self.groups):
            perturb(moved, pair, (at.eps, -at.eps), seed=at.seed, step=at.step, probe=group)
            numbers = np.flatnonzero(groups == group).tolist()
            losses[:, numbers] = look.part(numbers).losses(rows)
        return Measured(losses, self.scalars(losses, eps=at.eps))

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The projected gradients, float16 ``[G]``, from losses float64 ``[2, batch]``."""
        groups = self._group_of_each()
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.bincount(groups, weights=losses[0] - losses[1], minlength=self.groups)
            means = sums / np.bincount(groups, minlength=self.groups)
            return np.asarray(means / (2.0 * eps), dtype=np.float16)

    def apply(self, values: Values, scalars: NDArray[np.float16], at: StepContext) -> None:
        """``v += float32(-lr s_g / (G sqrt(r))) * z_g`` for each group in turn."""
        square = 0.0
        for scalar in scalars:  # in order and in double precision: the same bits everywhere
            square += float(scalar) * float(scalar)
        square /= len(scalars)
        if "mean_square" in self.state:
            square = KEPT * float(self.state["mean_square"][0]) + (1.0 - KEPT) * square
        self.state["mean_square"] = np.array([square])
        if square == 0.0:
            return
        rate = -at.lr / (len(scalars) * math.sqrt(square))
        moved = values.sensitive[self.first : self.last]
        for probe, scalar in enumerate(scalars):
            scale = rate * float(scalar)
            add_noise(moved, scale, seed=at.seed, step=at.step, probe=probe)


def _fit(options: PerExampleOptions, settings: Settings, context: RunContext) -> Settings:
    """A batch that the training examples fill, in groups of one example of each answer."""
    size = min(settings.batch_size, context.examples)
    groups = options.groups or max(1, size // max(1, context.answers))
    own = replace(options, groups=min(groups, size))
    return replace(settings, batch_size=size, options=own)


def _shape(options: PerExampleOptions, context: RunContext) -> Shape:
    """The values of the blocks between the two depths; all of them where none lies there."""
    blocks = context.blocks
    if blocks is None:
        return {"first": 0, "last": context.entries}
    least, most = (round(depth * context.block_count) for depth in MIDDLE)
    inside = np.flatnonzero((blocks >= least) & (blocks < most))
    if not len(inside):
        return {"first": 0, "last": context.entries}
    return {"first": int(inside[0]), "last": int(inside[-1]) + 1}


def _make(
    options: PerExampleOptions, settings: Settings, shape: Shape | None, part: Part | None
) -> PerExample:
    sizes = {} if shape is None else dict(shape)
    if set(sizes) != {"first", "last"} or not 0 <= sizes["first"] < sizes["last"]:
        raise ValueError(f"values {sizes}")
    groups = options.groups or settings.batch_size
    if groups > settings.batch_size:
        raise ValueError(f"{groups} groups of {settings.batch_size} examples")
    return PerExample(groups, settings.batch_size, **sizes)


SPEC = EstimatorSpec(
    name="per-example",
    summary="default otherwise: two-point SPSA with noise of each few examples' own",
    options=PerExampleOptions,
    make=_make,
    steps=200,
    eval_every=25,
    fixes_batch_size=True,
    holds_examples=True,
    suits=lambda context: True,
    fit=_fit,
    shape=_shape,
)

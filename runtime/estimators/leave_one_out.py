"""One-sided probes, each against the mean of the others: q directions from q forwards.

The leave-one-out baseline of Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!"
(ICLR 2019 workshop), as LOREN (arXiv 2511.07971, its RLOO estimator) uses it for forward-only
tuning, here with +-1 noise and without LOREN's preconditioner:

    g_i = (L(v + eps z_i) - mean_{j != i} L(v + eps z_j)) / eps,   v <- v - lr / q sum_i g_i z_i

The baseline does not depend on z_i, so the estimate has no bias from it. It also holds all that
the probes have in common: with +-1 noise, the trace of the curvature, which a base loss at ``v``
leaves in (``L(v + eps z) - L(v)`` has ``eps^2 / 2`` times it). A two-point estimate takes two
forwards a direction and halves the loss noise; where the noise is not the limit, directions are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..settings import NoiseKind
from .estimator import Facts
from .probes import Perturbing, apply_mean, perturb_each


@dataclass
class LeaveOneOut(Perturbing):
    """Each probe's loss less the mean of the others' gives its scalar, a projected gradient."""

    noise: NoiseKind = "rademacher"
    directions: int = 8
    """q, at least 2."""

    @property
    def probes(self) -> int:
        """q: ``v + eps z_i``."""
        return self.directions

    @property
    def scalar_count(self) -> int:
        """q: the projected gradients."""
        return self.directions

    def perturb(
        self,
        values: NDArray[np.float32],
        rows: NDArray[np.float32],
        *,
        seed: int,
        step: int,
        eps: float,
        first: int = 0,
    ) -> None:
        """Write ``v + eps z_i`` into ``rows`` (float32 ``[n, K]``), ``i`` from ``first`` on."""
        perturb_each(values, rows, seed=seed, step=step, eps=eps, first=first, kind=self.noise)

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The projected gradients, float16 ``[q]``."""
        losses = losses.mean(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            others = (losses.sum() - losses) / (len(losses) - 1)
            return np.asarray((losses - others) / eps, dtype=np.float16)

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """``v += float32(-lr * scalar_i / q) * z_i`` for each direction."""
        apply_mean(values, scalars, seed=seed, step=step, lr=lr, kind=self.noise)


FACTS = Facts(
    name="leave-one-out",
    summary="one-sided probes against the mean of the others",
    make=lambda its, basis, shape: LeaveOneOut(its.noise, its.directions or 8),
    forwards=lambda directions: directions,
    directions=8,
    least_directions=2,
)

"""FZOO: one-sided probes against the base loss, the step divided by the probe losses' deviation.

Dang et al., "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards
Adam-Scale Speed" (arXiv 2506.09034), N = 8 directions of +-1 noise:

    g_i = (L(v + eps z_i) - L(v)) / sigma,     v <- v - lr / N sum_i g_i z_i

sigma is the population standard deviation (division by N) of the N probe losses, the base not
among them. It stands where other estimators have eps: a step has no unit of the loss, and ``lr`` is
about what a value moves by, times the square root of N. Where all probe losses are equal, nothing
is known and nothing moves. The paper runs probes and base in one batched call; so does the P axis.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..settings import NoiseKind
from .estimator import Facts
from .probes import Perturbing, apply_mean, perturb_each


@dataclass
class OneSided(Perturbing):
    """Each probe's loss less the base, in deviations, gives its scalar."""

    noise: NoiseKind = "rademacher"
    directions: int = 8
    """N, at least 2."""

    @property
    def probes(self) -> int:
        """``N + 1``: the base ``v``, then ``v + eps z_i``."""
        return self.directions + 1

    @property
    def scalar_count(self) -> int:
        """N: the differences to the base in deviations."""
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
        """Write ``v``, ``v + eps z_0``, ``v + eps z_1``, ... from row ``first`` on."""
        if first == 0:
            rows[0] = values
            rows, first = rows[1:], 1
        perturb_each(values, rows, seed=seed, step=step, eps=eps, first=first - 1, kind=self.noise)

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The probe losses less the base in deviations, float16 ``[N]``; zeros without any."""
        losses = losses.mean(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = losses[1:].std()
            if deviation == 0.0:
                return np.zeros(self.directions, dtype=np.float16)
            return np.asarray((losses[1:] - losses[0]) / deviation, dtype=np.float16)

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """``v += float32(-lr * scalar_i / N) * z_i`` for each direction."""
        apply_mean(values, scalars, seed=seed, step=step, lr=lr, kind=self.noise)


FACTS = Facts(
    name="one-sided",
    summary="FZOO: probes against the base loss, in their deviations",
    make=lambda its, basis, shape: OneSided(its.noise, its.directions or 8),
    forwards=lambda directions: directions + 1,
    directions=8,
    least_directions=2,
)

"""Two-point SPSA: the step of MeZO, both losses from one engine call.

Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation" (1992), as Algorithm 1 of Malladi et al., "Fine-Tuning Language Models with Just
Forward Passes" (arXiv 2305.17333) uses it:

    g = (L(v + eps z) - L(v - eps z)) / (2 eps),     v <- v - lr g z

MeZO draws a Gaussian z; here z is +-1 by default (Spall's choice: lower variance, exact in any
number format, one bit an entry). MeZO perturbs one copy in place three times; here values are
program inputs, so the two perturbed copies are the two rows of one call.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..noise import NoiseKind, add_noise, perturb


@dataclass(frozen=True)
class TwoPoint:
    """Two losses give one scalar, the projected gradient. Has no state."""

    noise: NoiseKind = "rademacher"

    @property
    def probes(self) -> int:
        """Two: ``v + eps z`` and ``v - eps z``."""
        return 2

    @property
    def scalar_count(self) -> int:
        """One: the projected gradient."""
        return 1

    def perturb(
        self,
        values: NDArray[np.float32],
        rows: NDArray[np.float32],
        *,
        seed: int,
        step: int,
        eps: float,
    ) -> None:
        """Write ``v + eps z`` and ``v - eps z`` into ``rows`` (float32 ``[2, K]``)."""
        perturb(values, rows, (eps, -eps), seed=seed, step=step, kind=self.noise)

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The projected gradient, float16 ``[1]``; infinite where float16 cannot hold it."""
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = (losses[0] - losses[1]) / (2.0 * eps)
            return np.array([gradient], dtype=np.float16)

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """``v += float32(-lr * scalar) * z``; the product is float64, rounded once."""
        coefficient = -lr * float(scalars[0])
        add_noise(values, coefficient, seed=seed, step=step, kind=self.noise)

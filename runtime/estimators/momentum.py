"""ConMeZO: two-point steps along directions in a cone around their own momentum.

Behric et al., "ConMeZO: Adaptive Descent-Direction Sampling for Gradient-Free Finetuning of Large
Language Models" (arXiv 2511.02757):

    z = sqrt(K) cos(theta) m / |m| + sin(theta) u
    g = (L(v + eps z) - L(v - eps z)) / (2 eps),   v <- v - lr g z,   m <- beta m + (1 - beta) g z

With K in the hundred thousands a random direction holds nearly nothing of the gradient, the mean
of a hundred past steps holds some: leaning towards it raises the projected gradient. From the paper
are the cone, the estimate and the momentum. Our reading: u is the raw noise (its length is sqrt(K)
exactly for +-1 and nearly for Gaussian noise), the settings give cos(theta) itself, beta stays the
same from the first step on, and several directions share the momentum before the step. Until there
is a momentum, z is u.

The cone needs |m| to the bit on every machine, and the order of a floating-point sum is not the
same on all of them: it is summed in integers.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..settings import NoiseKind
from .estimator import Facts
from .noise import add_noise
from .probes import Perturbing
from .two_point import TwoPoint

_BLOCK = 1 << 16


@dataclass
class Momentum(Perturbing):
    """As ``TwoPoint``, along other directions. Its state is ``momentum``, float32 ``[K]``."""

    noise: NoiseKind
    directions: int
    """q."""
    decay: float
    """beta, 0 to below 1: share of the old momentum that a step keeps."""
    lean: float
    """cos(theta), 0 to below 1: the cosine between a direction and the momentum."""

    @property
    def probes(self) -> int:
        """``2 q``: ``v + eps z`` and ``v - eps z`` of each direction."""
        return 2 * self.directions

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
        """Write ``v + eps z_0``, ``v - eps z_0``, ``v + eps z_1``, ... from row ``first`` on."""
        along, across = self._shares()
        for number, row in enumerate(rows, first):
            probe, minus = divmod(number, 2)
            scale = -eps if minus else eps
            row[:] = values
            if along:
                row += np.float32(scale * along) * self.state["momentum"]
            scale *= across
            add_noise(row, scale, seed=seed, step=step, probe=probe, kind=self.noise)

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The projected gradients, float16 ``[q]``; infinite where float16 cannot hold one."""
        return TwoPoint(self.noise, self.directions).scalars(losses, eps=eps)

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """Move ``values`` along the mean of ``scalar_i * z_i``, then take it into the momentum."""
        along, across = self._shares()
        estimate = np.zeros_like(values)
        total = 0.0
        for probe, scalar in enumerate(scalars):
            share = float(scalar) / len(scalars)
            total += share
            add_noise(estimate, across * share, seed=seed, step=step, probe=probe, kind=self.noise)
        momentum = self.state.setdefault("momentum", np.zeros_like(values))
        if along:
            estimate += np.float32(along * total) * momentum
        momentum *= np.float32(self.decay)
        momentum += np.float32(1.0 - self.decay) * estimate
        values += np.float32(-lr) * estimate

    def _shares(self) -> tuple[float, float]:
        """What momentum and noise are multiplied by in a direction."""
        momentum = self.state.get("momentum")
        length = 0.0 if momentum is None else norm(momentum)
        if momentum is None or length == 0.0:
            return 0.0, 1.0
        along = self.lean * math.sqrt(len(momentum)) / length
        return along, math.sqrt(1.0 - self.lean * self.lean)


def norm(vector: NDArray[np.float32]) -> float:
    """Euclidean norm of float32 ``[K]``, K below 2**26, the same bits on every platform.

    Entries are rounded to 2**-18 of the largest one's power of two.
    """
    peak = float(np.abs(vector).max())
    if peak == 0.0:
        return 0.0
    scale = 2.0 ** (18 - math.frexp(peak)[1])
    total = 0
    for start in range(0, len(vector), _BLOCK):
        block = np.rint(vector[start : start + _BLOCK].astype(np.float64) * scale)
        whole = block.astype(np.int64)
        total += int(np.dot(whole, whole))
    return math.sqrt(total) / scale


FACTS = Facts(
    name="momentum",
    summary="ConMeZO: two-point steps in a cone around their momentum",
    make=lambda its, basis, shape: Momentum(its.noise, its.directions or 1, its.momentum, its.cone),
    forwards=lambda directions: 2 * directions,
    directions=1,
    least_directions=1,
    ignores=(),
)

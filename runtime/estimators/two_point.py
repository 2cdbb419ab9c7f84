"""Two-point SPSA: the step of MeZO, both losses from one engine call.

Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation" (1992), as Algorithm 1 of Malladi et al., "Fine-Tuning Language Models with Just
Forward Passes" (arXiv 2305.17333) uses it, with the mean over q seeds (its n-SPSA):

    g_i = (L(v + eps z_i) - L(v - eps z_i)) / (2 eps),     v <- v - lr / q sum_i g_i z_i

MeZO draws a Gaussian z; here z is +-1 (Spall's choice: lower variance, exact in any
number format, one bit an entry). MeZO perturbs one copy in place three times; here values are
program inputs, so the perturbed copies are rows of one call.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scoring.batch_loss import Look
from ..scoring.part import Part
from ..scoring.values import Values
from ..settings import RATE, Perturbing, Settings, option
from .estimator import EstimatorSpec, Measured, Shape, StepContext
from .noise import MAX_PROBE, add_noise, perturb


@dataclass(frozen=True)
class TwoPointOptions(Perturbing):
    """Of a run with two-point steps."""

    lr: float = option(2e-5, f"{RATE}.", above=0)
    seeds: int = option(
        1, "Noises a step, whose estimates are averaged.", least=1, most=MAX_PROBE + 1, fixed=True
    )

    @property
    def forwards(self) -> int:
        return 2 * self.seeds


@dataclass
class TwoPoint:
    """Two losses of each seed give its scalar, the projected gradient. It has no state."""

    seeds: int = 1
    """q."""

    signs = 0

    def __post_init__(self) -> None:
        self.state: dict[str, NDArray[Any]] = {}
        self._room = np.empty((0, 0), dtype=np.float32)

    @property
    def probes(self) -> int:
        """``2 q``: ``v + eps z`` and ``v - eps z`` of each seed."""
        return 2 * self.seeds

    @property
    def scalar_count(self) -> int:
        """q: the projected gradients."""
        return self.seeds

    def memory_bytes(self, examples: int) -> int:
        return 0

    def measure(self, look: Look, values: Values, at: StepContext) -> Measured:
        """Losses of all probes, with no more of them in memory than a pass takes."""
        shape = min(look.at_once, self.probes), len(values.sensitive)
        if self._room.shape != shape:  # kept: the pages of new room cost as much as the noise
            self._room = np.empty(shape, dtype=np.float32)
        parts = []
        for first in range(0, self.probes, len(self._room)):
            group = self._room[: self.probes - first]
            self.perturb(values.sensitive, group, at, first)
            parts.append(look.losses(group))
        losses = np.concatenate(parts)
        return Measured(losses, self.scalars(losses, eps=at.eps))

    def perturb(
        self,
        values: NDArray[np.float32],
        rows: NDArray[np.float32],
        at: StepContext,
        first: int = 0,
    ) -> None:
        """Write ``v + eps z_0``, ``v - eps z_0``, ``v + eps z_1``, ... from row ``first`` on.

        Args:
            values: float32 ``[K]``.
            rows: float32 ``[n, K]`` with ``first + n <= probes``.
        """
        done = 0
        while done < len(rows):
            probe, minus = divmod(first + done, 2)
            room = rows[done : done + 2 - minus]
            scales = (at.eps, -at.eps)[minus : minus + len(room)]
            perturb(values, room, scales, seed=at.seed, step=at.step, probe=probe)
            done += len(room)

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The projected gradients, float16 ``[q]``, from losses float64 ``[P, examples]``; infinite
        where float16 cannot hold one."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.slopes(losses, eps=eps).astype(np.float16)

    def slopes(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float64]:
        """The same before they are rounded, float64 ``[q]``."""
        losses = losses.mean(axis=1)
        return np.asarray((losses[0::2] - losses[1::2]) / (2.0 * eps))

    def apply(self, values: Values, scalars: NDArray[np.float16], at: StepContext) -> None:
        """``v += float32(-lr * scalar_i / q) * z_i`` for each seed in turn.

        The coefficient is a float64 product, rounded once.
        """
        for probe, scalar in enumerate(scalars):
            coefficient = -at.lr * float(scalar) / len(scalars)
            add_noise(values.sensitive, coefficient, seed=at.seed, step=at.step, probe=probe)


def _make(
    options: TwoPointOptions, settings: Settings, shape: Shape | None, part: Part | None
) -> TwoPoint:
    return TwoPoint(options.seeds)


SPEC = EstimatorSpec(
    name="two-point",
    summary="MeZO's: one noise for the whole batch, or several; its journals can be shared",
    options=TwoPointOptions,
    make=_make,
    suits=lambda context: True,
)

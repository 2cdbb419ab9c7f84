"""What estimators that perturb share: rows of a step in groups, and steps along a mean."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..settings import NoiseKind
from .estimator import Look, Measured
from .noise import add_noise, perturb


class Perturbing(ABC):
    """Evaluates ``probes`` rows of perturbed values, with no more in memory than a pass takes."""

    state: dict[str, NDArray[Any]]
    own_entries = 0
    words = 0
    signs = 0

    def __post_init__(self) -> None:  # of the dataclasses below
        self.state = {}
        self._room = np.empty((0, 0), dtype=np.float32)

    @property
    @abstractmethod
    def probes(self) -> int:
        """Rows (so losses, so forwards) of a step: P."""

    @abstractmethod
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
        """Write the values of the probes from number ``first`` on into ``rows``.

        Args:
            values: float32 ``[K]``.
            rows: float32 ``[n, K]`` with ``first + n <= probes``.
        """

    @abstractmethod
    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The step's numbers, float16 ``[S]``, from its losses, float64 ``[P, examples]``."""

    def memory_bytes(self, examples: int) -> int:
        return 0

    def measure(
        self, look: Look, values: NDArray[np.float32], *, seed: int, step: int, eps: float
    ) -> Measured:
        shape = min(look.at_once, self.probes), len(values)
        if self._room.shape != shape:  # kept: the pages of new room cost as much as the noise
            self._room = np.empty(shape, dtype=np.float32)
        parts = []
        for first in range(0, self.probes, len(self._room)):
            group = self._room[: self.probes - first]
            self.perturb(values, group, seed=seed, step=step, eps=eps, first=first)
            parts.append(look.losses(group))
        losses = np.concatenate(parts)
        return Measured(losses, self.scalars(losses, eps=eps))


def perturb_each(
    values: NDArray[np.float32],
    rows: NDArray[np.float32],
    *,
    seed: int,
    step: int,
    eps: float,
    first: int,
    kind: NoiseKind,
) -> None:
    """Write ``values + eps z_i`` into ``rows`` (float32 ``[n, K]``), ``i`` from ``first`` on."""
    for row in range(len(rows)):
        room, probe = rows[row : row + 1], first + row
        perturb(values, room, (eps,), seed=seed, step=step, probe=probe, kind=kind)


def apply_mean(
    values: NDArray[np.float32],
    scalars: NDArray[np.float16],
    *,
    seed: int,
    step: int,
    lr: float,
    kind: NoiseKind,
) -> None:
    """``values += float32(-lr * scalar_i / q) * z_i`` for each of the q directions in turn.

    The coefficient is a float64 product, rounded once.
    """
    for probe, scalar in enumerate(scalars):
        coefficient = -lr * float(scalar) / len(scalars)
        add_noise(values, coefficient, seed=seed, step=step, probe=probe, kind=kind)

"""Estimators: how probe losses become a step. One file each, behind one interface.

An estimator splits a step in three, so that a journal can stand between the last two:

1. ``perturb``  values -> the rows that one engine call evaluates;
2. ``scalars``  the rows' losses -> the few float16 numbers that the journal stores;
3. ``apply``    those numbers -> the new values. Live steps and replays call the same code.

``apply`` must depend on nothing but its arguments and on what earlier ``apply`` calls left in the
object, so that replaying a journal from its start rebuilds any state (a momentum, say).
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..noise import NoiseKind
from .two_point import TwoPoint


class Estimator(Protocol):
    """One way to turn probe losses into an update."""

    @property
    def probes(self) -> int:
        """Rows (hence losses, hence forwards) of a step: P."""
        ...

    @property
    def scalar_count(self) -> int:
        """float16 numbers that the journal stores for a step: S."""
        ...

    def perturb(
        self,
        values: NDArray[np.float32],
        rows: NDArray[np.float32],
        *,
        seed: int,
        step: int,
        eps: float,
    ) -> None:
        """Write the values of each probe into ``rows`` (float32 ``[P, K]``)."""
        ...

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The step's numbers, float16 ``[S]``, from its losses, float64 ``[P]``.

        Losses that are not finite, or numbers beyond float16, give numbers that are not finite.
        """
        ...

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """Move ``values`` (float32 ``[K]``) in place."""
        ...


_MAKERS: dict[str, Callable[[NoiseKind], Estimator]] = {"two-point": TwoPoint}

ESTIMATORS: tuple[str, ...] = tuple(_MAKERS)


def make_estimator(name: str, noise: NoiseKind) -> Estimator:
    """A fresh estimator by its name in the settings."""
    if name not in _MAKERS:
        raise TuningError(f"setting estimator={name!r} is not one of {', '.join(ESTIMATORS)}")
    return _MAKERS[name](noise)

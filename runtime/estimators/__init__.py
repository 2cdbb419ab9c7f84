"""Estimators: how probe losses become a step. One file each, behind one interface.

An estimator splits a step in three, so that a journal can stand between the last two:

1. ``perturb``  values -> the rows that the program evaluates, in as many calls as it needs;
2. ``scalars``  the rows' losses -> the few float16 numbers that the journal stores;
3. ``apply``    those numbers -> the new values. Live steps and replays call the same code.

``perturb`` and ``apply`` must depend on nothing but their arguments and ``state``, and only
``apply`` may change ``state``: replaying a journal from its start so rebuilds a momentum to the
bit, and ``compact`` carries it in the snapshot.

``readout`` alone perturbs nothing and takes hidden states instead of losses: a ``Readout`` has the
last two parts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.basis import Basis
from ..errors import TuningError
from ..scoring.answer_head import AnswerHeadShape
from . import gauss_newton
from .gauss_newton import GaussNewton
from .leave_one_out import LeaveOneOut
from .momentum import Momentum
from .one_sided import OneSided
from .readout import Readout
from .two_point import TwoPoint

if TYPE_CHECKING:
    from ..settings import Settings


class Estimator(Protocol):
    """One way to turn probe losses into an update."""

    @property
    def probes(self) -> int:
        """Rows (hence losses, hence forwards) of a step: P."""
        ...

    @property
    def scalar_count(self) -> int:
        """float16 numbers that the journal stores for a step: S. The first ``directions`` of them
        move the values, which a guard watches."""
        ...

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """What earlier ``apply`` calls left, by name; empty for most. Filling it restores it."""
        ...

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
        ...

    def scalars(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float16]:
        """The step's numbers, float16 ``[S]``, from its losses, float64 ``[P, examples]``.

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


class Kind(NamedTuple):
    """One of ``ESTIMATORS``."""

    make: Callable[["Settings", Basis | None], Estimator] | None
    """None for ``readout``."""
    usual: int
    """Directions of a step unless the settings say so."""
    least: int
    """Directions that it needs."""
    lr: float | None = None
    """What ``auto`` means as learning rate; None measures it."""
    eps: float | None = None
    """The same of eps."""
    fixed: tuple[str, ...] = ()
    """Further settings that a run cannot change."""
    along_basis: bool = False
    """Whether it moves along the bundle's directions, every example of a batch for itself."""

    def fit(self, settings: "Settings", basis: Basis | None, examples: int) -> "Settings":
        """``settings`` as a run with this basis and so many training examples can have them.

        Raises:
            TuningError: there is no basis, or it has fewer directions than were asked for.
        """
        if self.make is None:
            size = _whole_batches(settings.batch_size, examples)
            return replace(settings, steps=min(settings.steps, examples // size), batch_size=size)
        if not self.along_basis:
            return settings
        if basis is None:
            raise TuningError(
                f"estimator {settings.estimator} needs a bundle with directions: export it with "
                "its task, or add them with 'seedtune directions'"
            )
        directions = settings.directions
        if directions > basis.size:
            if directions != self.usual:
                raise TuningError(
                    f"directions is {directions}, the bundle has {basis.size}: lower it"
                )
            directions = basis.size
        size = min(settings.batch_size, examples)
        return replace(settings, directions=directions, batch_size=size)

    def own(self, settings: "Settings") -> dict[str, Any]:
        """Its own values of what is ``auto`` in the settings."""
        known = {"lr": self.lr, "eps": self.eps}
        return {
            name: value
            for name, value in known.items()
            if value is not None and getattr(settings, name) == "auto"
        }


ESTIMATORS: dict[str, Kind] = {
    "two-point": Kind(lambda its, _: TwoPoint(its.noise, its.directions), usual=1, least=1),
    "one-sided": Kind(lambda its, _: OneSided(its.noise, its.directions), usual=8, least=2),
    "leave-one-out": Kind(lambda its, _: LeaveOneOut(its.noise, its.directions), usual=8, least=2),
    "momentum": Kind(
        lambda its, _: Momentum(its.noise, its.directions, its.momentum, its.cone), usual=1, least=1
    ),
    "gauss-newton": Kind(
        lambda its, basis: GaussNewton(
            basis,
            its.directions,
            its.batch_size,
            gauss_newton.EPS if its.eps == "auto" else its.eps,
        ),
        usual=16,
        least=1,
        lr=1.0,
        eps=gauss_newton.EPS,
        fixed=("batch_size", "eps"),
        along_basis=True,
    ),
    "readout": Kind(None, usual=0, least=0, lr=1.0, eps=1.0, fixed=("batch_size", "eps")),
}


def _whole_batches(most: int, examples: int) -> int:
    """The largest batch up to ``most`` that leaves few examples, at most a sixteenth (or one), to a
    short last batch, which no step sees. A size that it gave is kept, as a resumed run needs."""
    few = max(1, examples // 16)
    return next(size for size in range(min(most, examples), 0, -1) if examples % size <= few)


def make_estimator(settings: "Settings", basis: Basis | None = None) -> Estimator:
    """A fresh estimator for a run of these settings, other than ``readout``.

    Args:
        basis: of the bundle; ``gauss-newton`` cannot move values without it.
    """
    make = ESTIMATORS[settings.estimator].make
    assert make is not None, "a readout is made of its shape"
    return make(settings, basis)


def make_for_run(
    settings: "Settings", basis: Basis | None, shape: AnswerHeadShape | None
) -> Estimator | Readout:
    """The estimator of a run; ``shape`` of those with a readout."""
    if shape is None:
        return make_estimator(settings, basis)
    return Readout(shape, settings.batch_size)


def forwards_a_step(settings: "Settings") -> int:
    """Forwards that a step of these settings takes."""
    return 1 if settings.estimator == "readout" else make_estimator(settings).probes

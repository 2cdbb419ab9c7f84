"""What an estimator is: how losses of looks at a batch become a step, and what others ask of it.

A step has two parts, so that a journal can stand between them:

1. ``measure``  looks at a batch -> its losses and the few float16 numbers that the journal stores;
2. ``apply``    those numbers -> the new values. Live steps and replays call the same code.

Both depend on nothing but their arguments and ``state``, and only ``apply`` may change ``state``,
so replaying a journal from its start rebuilds the state to the bit, and ``compact`` carries it in
the snapshot.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..scoring.batch_loss import Look
from ..scoring.values import Values


class Measured(NamedTuple):
    """What a step measured."""

    losses: NDArray[np.float64]
    """float64 ``[P, examples]``."""
    scalars: NDArray[Any]
    """What the journal stores: float16 ``[S]``, not finite where a loss is not, or where float16
    cannot hold a number; or signs, eight a byte, uint8."""


class Estimator(Protocol):
    """One way to turn losses into an update."""

    @property
    def probes(self) -> int:
        """Forwards of a step: P."""
        ...

    @property
    def scalar_count(self) -> int:
        """float16 numbers that the journal stores for a step: S."""
        ...

    @property
    def signs(self) -> int:
        """Signs that the journal stores for a step in place of numbers; 0 for most."""
        ...

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """What earlier ``apply`` calls left, by name; empty for most. Filling it restores it."""
        ...

    def memory_bytes(self, examples: int) -> int:
        """What it takes at its peak besides the rows of a pass, to learn from ``examples``."""
        ...

    def measure(self, look: Look, values: Values, *, seed: int, step: int, eps: float) -> Measured:
        """Look at the batch of step ``step`` from ``values``."""
        ...

    def apply(
        self,
        values: Values,
        scalars: NDArray[Any],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """Move ``values``, the part among them, in place, by what the journal stored."""
        ...


@runtime_checkable
class Averaging(Estimator, Protocol):
    """One whose numbers are means over examples: those of batches of one size, averaged, are those
    of all of their examples."""

    def slopes(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float64]:
        """The step's numbers before they are rounded, float64 ``[S]``, from losses float64
        ``[P, examples]``."""
        ...

"""What an estimator is: how losses of looks at a batch become a step, and what others ask of it.

A step has two parts, so that a journal can stand between them:

1. ``measure``  looks at a batch -> its losses and the few float16 numbers that the journal stores;
2. ``apply``    those numbers -> the new values. Live steps and replays call the same code.

Both depend on nothing but their arguments and ``state``, and only ``apply`` may change ``state``,
so replaying a journal from its start rebuilds the state to the bit, and ``compact`` carries it in
the snapshot.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..scoring.batch_loss import Tokens
from ..scoring.text_head import TextHead
from ..tasks import Observation


class Look(Protocol):
    """One batch, as an estimator may look at it."""

    @property
    def at_once(self) -> int:
        """Rows of values that one pass takes."""
        ...

    def losses(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Loss float64 ``[n, examples]`` of each example under ``rows`` (float32 ``[n, K]``)."""
        ...

    def part(self, numbers: Sequence[int]) -> "Look":
        """A look at some of the batch's examples."""
        ...

    @property
    def text(self) -> TextHead | None:
        """What the bundle has for a head for text, where the task takes one."""
        ...

    def tokens(self, values: NDArray[np.float32]) -> Tokens:
        """Every scored token under the sensitive values (float32 ``[K]``) alone."""
        ...

    def observe(self, values: NDArray[np.float32]) -> tuple[NDArray[np.float64], Observation]:
        """Losses float64 ``[1, examples]`` under ``values`` (float32 ``[K]`` and an answer head's
        weights), and from the same forwards what such a head learns from."""
        ...


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
    def own_entries(self) -> int:
        """Weights of its own that it puts behind the K sensitive values; 0 for most."""
        ...

    @property
    def words(self) -> int:
        """Of these, the last that hold words of the texts as they are; 0 for most."""
        ...

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """What earlier ``apply`` calls left, by name; empty for most. Filling it restores it."""
        ...

    def memory_bytes(self, examples: int) -> int:
        """What it takes at its peak besides the rows of a pass, to learn from ``examples``."""
        ...

    def measure(
        self, look: Look, values: NDArray[np.float32], *, seed: int, step: int, eps: float
    ) -> Measured:
        """Look at the batch of step ``step`` from ``values`` (float32 ``[K + own_entries]``)."""
        ...

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[Any],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """Move ``values`` (float32 ``[K + own_entries]``) in place, by what the journal stored."""
        ...

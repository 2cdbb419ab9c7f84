"""What an estimator is: how losses of looks at a batch become a step, and what others ask of it.

A step has two parts, so that a journal can stand between them:

1. ``measure``  looks at a batch -> its losses and the few float16 numbers that the journal stores;
2. ``apply``    those numbers -> the new values. Live steps and replays call the same code.

Both depend on nothing but their arguments and ``state``, and only ``apply`` may change ``state``,
so replaying a journal from its start rebuilds the state to the bit, and ``compact`` carries it in
the snapshot.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..scoring.batch_loss import Tokens
from ..scoring.text_head import TextHead
from ..settings import Schedule, Settings
from ..tasks import Observation

Shape = Mapping[str, int]
"""What an estimator fixes for a run when it begins, such as sizes of its own weights, by name, as
the journal's header keeps it."""


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
        """float16 numbers that the journal stores for a step: S. The first ``directions`` of them
        move the values, which a guard watches."""
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


@dataclass(frozen=True)
class Ground:
    """What a run stands on, as far as an estimator asks."""

    answers: int
    """Answers that the task chooses between; 0 where there is nothing to choose."""
    head_rows: int
    """Rows of an answer head for the task; 0 if it takes none."""
    hidden_width: int
    """Width of the hidden states that the program returns; 0 for none."""
    examples: int
    """Training examples."""
    entries: int = 0
    """K."""
    writes: bool = False
    """Whether the task is to write: its loss is words' negative log-likelihood."""
    text_head: tuple[int, int] | None = None
    """``(O, I)`` of a head for text, where bundle and program have what one takes."""
    blocks: NDArray[np.int64] | None = None
    """int64 ``[K]``, decoder block of each value, ascending; None where it is not known."""
    block_count: int = 0


@dataclass(frozen=True)
class Facts:
    """What the rest of the runtime asks of an estimator; each states its own in its own file."""

    name: str
    summary: str
    """Half a line for help texts."""
    make: Callable[[Settings, Shape | None], Estimator]
    """A fresh one for a run of complete settings. ValueError: sizes that make no sense."""
    forwards: Callable[[int], int]
    """Forwards of a step of so many directions."""
    directions: int
    """Directions of a step unless the settings say so."""
    least_directions: int
    most_directions: int = 32768
    lr: float | Literal["auto"] = 2e-5
    """Peak learning rate unless the settings say so; ``auto`` measures it."""
    eps: float | Literal["auto"] = "auto"
    schedule: Schedule = "constant"
    steps: int = 1000
    eval_every: int = 100
    own_rates: bool = False
    """Whether ``auto`` means its own ``lr`` and ``eps``, which fit any task: it solves for its step
    or normalises it."""
    ignores: tuple[str, ...] = ("remember",)
    """Settings that say nothing to it, so that people need not be shown them at its own value."""
    fixed: tuple[str, ...] = ()
    """Further settings that a run cannot change."""
    mends_bad_losses: bool = False
    """Whether its step is the remedy for a batch with a bad loss, and so must not be skipped."""
    holds_examples: bool = False
    """Whether its journal holds numbers of single examples, from which texts may be guessed."""
    suits: Callable[[Ground], bool] = lambda ground: False
    """Whether it is what learns most from a forward there."""
    fit: Callable[[Settings, Ground], Settings] = lambda settings, ground: settings
    """Settings as a run on that ground can have them. TuningError: it cannot run there."""
    shape: Callable[[Settings, Ground], Shape] | None = None
    """What it fixes for a run of complete settings on that ground; None: nothing."""

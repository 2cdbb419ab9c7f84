"""What an estimator is: how losses of looks at a batch become a step, and what others ask of it.

A step has two parts, so that a journal can stand between them:

1. ``measure``  looks at a batch -> its losses and the few float16 numbers that the journal stores;
2. ``apply``    those numbers -> the new values. Live steps and replays call the same code.

Both depend on nothing but their arguments and ``state``, and only ``apply`` may change ``state``,
so replaying a journal from its start rebuilds the state to the bit, and ``compact`` carries it in
the snapshot.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..scoring.batch_loss import Look
from ..scoring.part import Description, Part, PartKind
from ..scoring.values import Values
from ..settings import Options, Settings


class Measured(NamedTuple):
    """What a step measured."""

    losses: NDArray[np.float64]
    """float64 ``[P, examples]``."""
    scalars: NDArray[Any]
    """What the journal stores: float16 ``[S]``, not finite where a loss is not, or where float16
    cannot hold a number; or signs, eight a byte, uint8."""


class StepContext(NamedTuple):
    """What a step has to go by, beside its batch and the values."""

    seed: int
    """Of the run's noise."""
    step: int
    """Its number, from 0."""
    eps: float = 0.0
    """Size of a perturbation; 0 where there is none."""
    lr: float = 0.0


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

    def measure(self, look: Look, values: Values, at: StepContext) -> Measured:
        """Look at the batch of the step from ``values``; ``lr`` plays no part."""
        ...

    def apply(self, values: Values, scalars: NDArray[Any], at: StepContext) -> None:
        """Move ``values``, the part among them, in place, by what the journal stored; ``eps`` plays
        no part."""
        ...


@runtime_checkable
class Averaging(Estimator, Protocol):
    """One whose numbers are means over examples: those of batches of one size, averaged, are those
    of all of their examples."""

    def slopes(self, losses: NDArray[np.float64], *, eps: float) -> NDArray[np.float64]:
        """The step's numbers before they are rounded, float64 ``[S]``, from losses float64
        ``[P, examples]``."""
        ...


Shape = Mapping[str, int]
"""What an estimator fixes for a run when it begins, beside its part, by name, as the journal's
header keeps it."""
Own = TypeVar("Own", bound=Options)


@dataclass(frozen=True)
class RunContext:
    """What a run has to go by, as far as an estimator asks."""

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
    labels: tuple[str, ...] = ()
    """Of the rows of an answer head; none where one row serves all answers."""
    parts: Mapping[str, PartKind] = field(default_factory=dict)
    """Kinds of parts that can be learned there, by name."""
    kinds: Mapping[str, PartKind] = field(default_factory=dict)
    """Those that the bundle has something for, whatever the task."""
    blocks: NDArray[np.int64] | None = None
    """int64 ``[K]``, decoder block of each value, ascending; None where it is not known."""
    block_count: int = 0


def _as_asked(options: Options, settings: Settings, context: RunContext) -> Settings:
    return settings


@dataclass(frozen=True)
class EstimatorSpec(Generic[Own]):
    """An estimator: its name, its options, how it is made, and how a run with it differs."""

    name: str
    summary: str
    """Half a line for help texts and tables."""
    options: type[Own]
    make: Callable[[Own, Settings, Shape | None, Part | None], Estimator]
    """A fresh one for a run of complete settings, whose values begin with that part. ValueError:
    sizes that make no sense."""
    steps: int | None = 1000
    """Unless the settings say so; None: one pass over the training examples."""
    eval_every: int = 100
    """Unless the settings say so."""
    fixes_batch_size: bool = False
    """Whether a run cannot change its batch size."""
    guarded: bool = True
    """Whether its scalars are what the values move by, so that a runaway shows in their size."""
    mends_bad_losses: bool = False
    """Whether its step is the remedy for a batch with a bad loss, and so must not be skipped."""
    holds_examples: bool = False
    """Whether its journal holds numbers of single examples, from which texts may be guessed."""
    suits: Callable[[RunContext], bool] = lambda context: False
    """Whether it is what learns most from a forward there."""
    fit: Callable[[Own, Settings, RunContext], Settings] = _as_asked
    """Settings as such a run can have them. TuningError: it cannot run there."""
    shape: Callable[[Own, RunContext], Shape] | None = None
    """What it fixes for a run; None: nothing. TuningError: it cannot run there."""
    holds: Callable[[RunContext], int] = lambda context: 0
    """Bytes of the model that its looks hold, beside a pass."""
    part: Callable[[Own, RunContext], Description] | None = None
    """The part that it moves beside the sensitive values, likewise; None: it moves those alone."""

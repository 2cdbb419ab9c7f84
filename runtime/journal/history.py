"""What a journal's records add up to: the state that the loop decides from.

The live loop feeds it each record that it has written, a resumed loop the records that it reads.
So both reach the same decisions, which makes an interrupted run equal an uninterrupted one.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import JournalError, SeedtuneError
from ..estimators import EstimatorSpec, StepContext, changed, spec_of, stored_settings
from .format import (
    SKIP_REASONS,
    Change,
    End,
    Evaluation,
    Header,
    Note,
    Record,
    Reference,
    Signs,
    Skip,
    Step,
)

NOT_FINITE, LOSS_JUMP, RUNAWAY = 1, 2, 3
MAX_SKIPS = 10
"""Skipped steps in a row after which the run stops."""
_ADVICE = {
    NOT_FINITE: "the program returns losses that are not numbers: check the data with "
    "'seedtune evaluate', or rewind to an earlier step and lower lr",
    LOSS_JUMP: "the loss is far above its start: rewind to the best step and lower lr",
    RUNAWAY: "the steps explode: rewind to the best step and lower lr",
}
GUARD_WINDOW = 64
"""Steps whose scalars the runaway guard remembers."""
SCALAR_JUMP = 10.0
"""Skip a step this many times as large as these in the root mean square."""
PROGRAM = "program"
"""Where a header's ``extra`` has ``Engine.program``; a note ``program: ..`` tells of another."""


class Evaluated(NamedTuple):
    """A held-out evaluation of the values after ``step`` steps (float32 numbers)."""

    step: int
    loss: float
    metric: float


class History:
    """State after the records so far."""

    def __init__(self, header: Header, name: str) -> None:
        try:
            self.settings = stored_settings(header.settings)
            self._need_chosen()
            self.spec: EstimatorSpec[Any] = spec_of(self.settings.estimator)
            """What the run's estimator is."""
            noted = (header.extra or {}).get(PROGRAM)
            self.program = noted if isinstance(noted, str) else None
            """Whose losses the steps are from now on (see ``Engine.program``), if it was noted."""
            self.higher_is_better = bool(header.metric["higher_is_better"])
            self.steps = header.first_step
            """Steps done, skipped ones included; the number of the next step."""
            self.data: dict[str, str | None] = {
                "train_sha256": header.train_sha256,
                "eval_sha256": header.eval_sha256,
            }
            """Hashes of the encoded examples now in use."""
            self.evaluations: list[Evaluated] = []
            self.reference: float | None = None
            """Batch loss at the start, where nothing was evaluated."""
            if header.snapshot is not None:
                self.evaluations = [Evaluated(*item) for item in header.snapshot["evaluations"]]
                self.reference = header.snapshot["reference"]
            rows = header.metric.get("rows")
            self._rows = None if rows is None else int(rows)
            self.best: Evaluated | None = None
            """The best evaluation (see ``_beats``), the earliest of equals; None if nothing finite
            was evaluated."""
            self._least = math.inf
            """Lowest cost (see ``_cost``) so far."""
            self._regular: tuple[float, float] | None = None
            """Losses of the first and the last evaluation that settings ask for."""
            self._take_all()
        except (SeedtuneError, KeyError, TypeError, ValueError) as error:
            raise JournalError(f"{name}: header does not make sense: {error}") from None
        self.skipped = 0
        self.skips_in_row = 0
        self.notes: list[tuple[int, str]] = []
        self.changes: list[tuple[int, str, object]] = []
        self.ends: list[tuple[int, str]] = []
        self._squares: deque[float | None] = deque(maxlen=GUARD_WINDOW)
        self._name = name

    def add(self, record: Record) -> None:
        """Take in the next record."""
        if isinstance(record, Step):
            self.steps += 1
            self.skips_in_row = 0
            self._squares.append(mean_square(record.scalars) if self.spec.guarded else 0.0)
        elif isinstance(record, Signs):
            self.steps += 1
            self.skips_in_row = 0
        elif isinstance(record, Skip):
            self.steps += 1
            self.skipped += 1
            self.skips_in_row += 1
            self._squares.append(None)
        elif isinstance(record, Evaluation):
            self.evaluations.append(Evaluated(self.steps, record.loss, record.metric))
            self._take(self.evaluations[-1])
        elif isinstance(record, Reference):
            self.reference = record.loss
        elif isinstance(record, Change):
            self._change(record)
        elif isinstance(record, Note):
            self.notes.append((self.steps, record.text))
            if record.text.startswith(f"{PROGRAM}: "):
                self.program = record.text.removeprefix(f"{PROGRAM}: ")
        elif isinstance(record, End):
            # Whoever starts again has had the advice: a fresh count.
            self.skips_in_row = 0
            self.ends.append((self.steps, record.reason))

    def _change(self, record: Change) -> None:
        if record.field in self.data:
            self.data[record.field] = record.value
        else:
            try:
                self.settings = changed(self.settings, {record.field: record.value})
                self._need_chosen()
                self._take_all()
            except (SeedtuneError, TypeError) as error:
                raise JournalError(
                    f"{self._name}: change after step {self.steps}: {error}"
                ) from None
        self.changes.append((self.steps, record.field, record.value))

    def _need_chosen(self) -> None:
        """See that nothing is open that a run measures or chooses when it starts."""
        _ = self.settings.learning_rate(0), self.settings.options.perturbation

    @property
    def next_step(self) -> StepContext:
        """What the next step has to go by."""
        its, step = self.settings, self.steps
        return StepContext(its.seed, step, its.options.perturbation, its.learning_rate(step))

    @property
    def loss_limit(self) -> float | None:
        """Batch loss above which a step is skipped; None before there is anything to judge by."""
        first, last = self._regular or (self.reference, self.reference)
        if first is None or last is None:
            return None
        return last + self.settings.loss_jump * max(abs(first), 1e-3)

    def _take(self, item: Evaluated) -> None:
        """Let an evaluation count in ``best`` and ``loss_limit``, which each step asks for."""
        if not math.isfinite(item.loss):
            return
        if math.isfinite(item.metric):
            self._least = min(self._least, self._cost(item))
            if self.best is None or self._beats(item, self.best):
                self.best = item
        # Only evaluations that every run of these settings makes: one that an app asked for, or
        # that a budget ended with, must not make this run skip what another would not.
        if item.step % (self.settings.eval_every or self.settings.resolved_steps) == 0:
            first = item.loss if self._regular is None else self._regular[0]
            self._regular = first, item.loss

    def _beats(self, item: Evaluated, best: Evaluated) -> bool:
        """Whether ``item`` takes the place of ``best``.

        All whose metrics lie within its standard error of the best one so far are as good (of 300
        rows, accuracies of 84 and 86 % are), and the loss tells them apart, which sees more of
        each row.
        """
        mine, other = (item.loss, self._cost(item)), (best.loss, self._cost(best))
        limit = self._least + self._error
        return mine[1] <= limit and (other[1] > limit or mine < other)

    def _cost(self, item: Evaluated) -> float:
        return -item.metric if self.higher_is_better else item.metric

    @property
    def _error(self) -> float:
        """Standard error of the best metric so far, where it is a share of rows; 0 where not."""
        if self._rows is None:
            return 0.0
        return standard_error(min(1.0, abs(self._least)), self._rows)

    def _take_all(self) -> None:
        """Begin again, where settings have changed by which evaluations count for the guard."""
        self.best, self._least, self._regular = None, math.inf, None
        for item in self.evaluations:
            self._take(item)

    @property
    def scalar_limit(self) -> float | None:
        """Root mean square of a step's scalars (those that move the values) above which it is
        skipped; None early in a run."""
        known = [square for square in self._squares if square is not None]
        if len(known) < GUARD_WINDOW // 4:
            return None
        mean = sum(known) / len(known)
        return SCALAR_JUMP * math.sqrt(mean) if mean > 0 else None

    def judge(self, losses: NDArray[np.float64], scalars: NDArray[Any]) -> Skip | None:
        """Why the next step must leave the values alone, or None.

        Args:
            losses: float64 ``[P]``, of its probes; a skip where one is not finite, or their mean
                jumps.
            scalars: float16 ``[S]``, a skip beyond float16 or far beyond those of recent steps; or
                signs, which cannot be.
        """
        if not np.isfinite(losses).all():
            return Skip(NOT_FINITE)
        limit = self.loss_limit
        # Where the step is the remedy, the batch that surprised the estimator would teach nothing.
        mends = self.spec.mends_bad_losses
        if not mends and limit is not None and float(losses.mean()) > limit:
            return Skip(LOSS_JUMP)
        if not np.isfinite(scalars).all():
            return Skip(RUNAWAY)
        limit = self.scalar_limit
        if limit is not None and math.sqrt(mean_square(map(float, scalars))) > limit:
            return Skip(RUNAWAY)
        return None

    def giving_up(self, skip: Skip) -> str | None:
        """Why the run has to stop after this skipped step, with advice; None while it may go on."""
        if self.skips_in_row < MAX_SKIPS:
            return None
        return (
            f"{self.skips_in_row} steps in a row were skipped up to step {self.steps} "
            f"({SKIP_REASONS[skip.reason]}); {_ADVICE[skip.reason]}"
        )


def mean_square(scalars: Iterable[float]) -> float:
    """Mean square of the scalars that move the values, summed in order; 0 of none."""
    total, count = 0.0, 0
    for scalar in scalars:
        total += scalar * scalar
        count += 1
    return total / max(count, 1)


def rounded(value: float) -> float:
    """``value`` as the journal stores it: the nearest float32."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def standard_error(share: float, rows: int) -> float:
    """Of a share of so many rows, such as an accuracy."""
    # Laplace's estimate: all of some rows right is no proof that all others are.
    likely = (rows * share + 1) / (rows + 2)
    return math.sqrt(likely * (1 - likely) / max(1, rows))

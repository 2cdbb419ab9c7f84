"""What a journal's records add up to: the state that the loop decides from.

The live loop feeds it each record that it has written, a resumed loop the records that it reads.
So both reach the same decisions, which makes an interrupted run equal an uninterrupted one.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..errors import JournalError, SeedtuneError
from ..estimators import Facts, facts_of
from ..settings import Settings
from .format import Change, End, Evaluation, Header, Note, Record, Reference, Skip, Step

GUARD_WINDOW = 64
"""Steps whose scalars the runaway guard remembers."""


class Evaluated(NamedTuple):
    """A held-out evaluation of the values after ``step`` steps (float32 numbers)."""

    step: int
    loss: float
    metric: float


class History:
    """State after the records so far."""

    def __init__(self, header: Header, name: str) -> None:
        try:
            self.settings = Settings.from_dict(header.settings)
            self.settings.learning_rate(0)  # lr, eps, steps: chosen, and numbers
            _ = self.settings.resolved_eps
            self.facts: Facts = facts_of(self.settings)
            """Of the run's estimator."""
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
            self._squares.append(mean_square(record.scalars[: self.settings.directions]))
        elif isinstance(record, Skip):
            self.steps += 1
            self.skipped += 1
            self.skips_in_row += 1
            self._squares.append(None)
        elif isinstance(record, Evaluation):
            self.evaluations.append(Evaluated(self.steps, record.loss, record.metric))
        elif isinstance(record, Reference):
            self.reference = record.loss
        elif isinstance(record, Change):
            self._change(record)
        elif isinstance(record, Note):
            self.notes.append((self.steps, record.text))
        elif isinstance(record, End):
            # Whoever starts again has had the advice: a fresh count.
            self.skips_in_row = 0
            self.ends.append((self.steps, record.reason))

    def _change(self, record: Change) -> None:
        if record.field in self.data:
            self.data[record.field] = record.value
        else:
            try:
                fields = {**self.settings.to_dict(), record.field: record.value}
                self.settings = Settings.from_dict(fields)
            except (SeedtuneError, TypeError) as error:
                raise JournalError(
                    f"{self._name}: change after step {self.steps}: {error}"
                ) from None
        self.changes.append((self.steps, record.field, record.value))

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation, the earliest of equals; None if nothing finite was evaluated."""
        sign = -1.0 if self.higher_is_better else 1.0

        def rank(item: Evaluated) -> tuple[float, float]:
            if self.settings.best_by == "metric":
                return sign * item.metric, item.loss
            return item.loss, sign * item.metric

        sound = [e for e in self.evaluations if math.isfinite(e.loss) and math.isfinite(e.metric)]
        return min(sound, key=rank, default=None)

    @property
    def loss_limit(self) -> float | None:
        """Batch loss above which a step is skipped; None before there is anything to judge by."""
        # Only evaluations that every run of these settings makes: one that an app asked for, or
        # that a budget ended with, must not make this run skip what another would not.
        every = self.settings.eval_every or self.settings.resolved_steps
        losses = [e.loss for e in self.evaluations if e.step % every == 0 and math.isfinite(e.loss)]
        if not losses and self.reference is not None:
            losses = [self.reference]
        if not losses:
            return None
        return losses[-1] + self.settings.loss_jump * max(abs(losses[0]), 1e-3)

    @property
    def scalar_limit(self) -> float | None:
        """Root mean square of a step's scalars (those that move the values) above which it is
        skipped; None early in a run."""
        known = [square for square in self._squares if square is not None]
        if len(known) < GUARD_WINDOW // 4:
            return None
        mean = sum(known) / len(known)
        return self.settings.scalar_jump * math.sqrt(mean) if mean > 0 else None


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

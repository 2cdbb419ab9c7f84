"""A run in progress: its journal, what the journal adds up to, and the values that go with it.

Every change goes through ``commit``: the record is written, then history and values follow. What
is in memory is so always what a replay of the file gives.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.exported_values import values_sha256
from ..errors import JournalError, TuningError
from ..estimators import ESTIMATORS, Estimator, make_for_run
from ..estimators.readout import Readout
from ..journal.file import Durability, JournalWriter
from ..journal.format import Change, End, Evaluation, Header, Record, Step
from ..journal.history import History
from ..journal.replay import readout_shape, replay
from ..journal.start import Start
from ..settings import FIXED, Settings
from ..tasks import Encoded

_ALWAYS = ("steps",)


@dataclass(frozen=True)
class Tuned:
    """The state to ship."""

    values: NDArray[np.float32]
    """float32 ``[K]``, or with a readout's weights behind them."""
    step: int
    """Steps behind it; 0 is the start."""
    loss: float | None
    """Held-out loss, None if nothing was evaluated."""
    metric: float | None
    message: str
    """One sentence for the user, which says so if the run did not beat its start."""


class RunState:
    """Made by ``begin`` or ``resume``; holds the run's lock until closed."""

    def __init__(
        self,
        writer: JournalWriter,
        history: History,
        estimator: Estimator | Readout,
        values: NDArray[np.float32],
        best_values: NDArray[np.float32],
    ) -> None:
        self.writer = writer
        self.history = history
        self.estimator = estimator
        self.values = values
        """float32 ``[K]``, or with a readout's weights behind them; live."""
        self._best_values = best_values
        self._broken = False

    @classmethod
    def begin(
        cls, folder: Path, header: Header, start: Start, durability: Durability | None
    ) -> "RunState":
        """Start a run in a folder that has none."""
        settings = Settings.from_dict(header.settings)
        shape = readout_shape(header, str(folder))
        estimator, start = make_for_run(settings, start.basis, shape), start.with_readout(shape)
        writer = JournalWriter.create(folder, header, durability=durability)
        history = History(header, str(writer.path))
        return cls(writer, history, estimator, start.values.copy(), start.values)

    @classmethod
    def resume(
        cls,
        folder: Path,
        start: Start,
        *,
        settings: Settings | None,
        data: Mapping[str, str | None],
        examples: int,
        durability: Durability | None,
        allow_changes: bool,
    ) -> "RunState":
        """Go on with a run; a torn tail is cut and the values are replayed.

        Args:
            data: hashes of the encoded examples, as the header names them.
            examples: how many there are to train on.

        Raises:
            JournalError: damaged, in use, or of another bundle.
            TuningError: settings or examples other than the run's, and not ``allow_changes``.
        """
        writer, journal = JournalWriter.open(folder, durability=durability)
        try:
            done = replay(journal, start)
            state = cls(writer, done.history, done.estimator, done.values, done.best_values)
            own = ESTIMATORS[done.history.settings.estimator].fixed
            size = done.history.settings.batch_size
            if "batch_size" in own and examples < size:
                raise TuningError(
                    f"{writer.path}: a step of the run takes {size} training examples, {examples} "
                    "are given: give more, or start a new run in another folder"
                )
            changes = state._changes(settings, data)
            for field, before, now in changes:
                fixed = field in FIXED or field in own
                if field not in _ALWAYS and (fixed or not allow_changes):
                    advice = "give the same, or allow changes"
                    if fixed:
                        advice = "give the same, or start a new run in another folder"
                    raise TuningError(
                        f"{writer.path}: the run has {field}={_short(before)}, not {_short(now)}; "
                        + advice
                    )
            for field, _, now in changes:
                state.commit(Change(field, now))
        except BaseException:
            writer.close()
            raise
        return state

    def _changes(
        self, settings: Settings | None, data: Mapping[str, str | None]
    ) -> list[tuple[str, Any, Any]]:
        """``(field, value of the run, wanted value)`` where they differ."""
        have: dict[str, Any] = {**self.history.settings.to_dict(), **self.history.data}
        want = {**have, **data}
        if settings is not None:
            want.update(settings.to_dict())
            for field in ("lr", "eps"):
                if want[field] == "auto":
                    want[field] = have[field]
        return [(field, have[field], want[field]) for field in have if have[field] != want[field]]

    def commit(self, record: Record) -> None:
        """Write a record, then let history and values follow.

        Raises:
            JournalError: it could not be written; nothing changed, and the state takes no more.
        """
        if self._broken:
            raise JournalError(f"{self.writer.path}: interrupted while recording; open it again")
        self._broken = True  # an interrupt from here to the end leaves memory behind the file
        self.writer.append(record)
        step = self.history.steps
        self.history.add(record)
        if isinstance(record, Step):
            settings = self.history.settings
            self.estimator.apply(
                self.values,
                np.array(record.scalars, dtype=np.float16),
                seed=settings.seed,
                step=step,
                lr=settings.learning_rate(step),
            )
        elif isinstance(record, Evaluation):
            best = self.history.best
            if best is not None and best is self.history.evaluations[-1]:
                self._best_values = self.values.copy()
        self._broken = False
        self.writer.sync_if_due()

    def end(self, reason: str) -> None:
        """Record why the loop ends, with the hash of the values, and sync."""
        digest = bytes.fromhex(values_sha256(self.values))[:16]
        self.commit(End(digest, reason))
        self.writer.sync()

    def tuned(self) -> Tuned:
        """The best evaluated state; the last one if nothing was evaluated."""
        history, best = self.history, self.history.best
        if best is None:
            message = f"the values after step {history.steps} ship; none was evaluated"
            return Tuned(self.values, history.steps, None, None, message)
        if best.step == 0:
            message = f"no evaluated step up to {history.steps} beat the start: the start ships"
        else:
            message = f"step {best.step} of {history.steps} is the best evaluated one and ships"
        return Tuned(self._best_values, best.step, best.loss, best.metric, message)

    def close(self) -> None:
        """Sync and release the run. Calling it again does nothing."""
        self.writer.close()


def examples_sha256(examples: Sequence[Encoded]) -> str | None:
    """Hash of encoded examples in order; None for none.

    Covers what the loss depends on: tokens, positions, candidates and the gold answer.
    """
    if not examples:
        return None
    digest = hashlib.sha256()
    for example in examples:
        for field in ("tokens", "positions", "candidates", "gold"):
            array = np.asarray(getattr(example, field))
            digest.update(f"{field}{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    """A setting for a message; hashes cut short."""
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text

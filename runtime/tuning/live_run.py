"""A run in progress: its journal and the state that goes with it.

Every change goes through ``commit``: the record is written, then the state follows.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import JournalError, TuningError
from ..estimators import RunContext, changed, fit, fixed_settings
from ..journal.file import JournalWriter
from ..journal.format import FORGOTTEN, Change, End, Header, Record
from ..journal.start import Start
from ..journal.state import RunState
from ..scoring.values import Values
from ..settings import Options
from ..tasks import Encoded

_ROWS = {
    "train_sha256": "training rows than --train gives",
    "eval_sha256": "held-out rows than --data gives",
}


@dataclass(frozen=True)
class Tuned:
    """The state to ship."""

    values: Values = field(repr=False)
    step: int
    """Steps behind it; 0 is the start."""
    loss: float | None
    """Held-out loss, None if nothing was evaluated."""
    metric: float | None
    message: str
    """One sentence for the user, which says so if the run did not beat its start."""


class LiveRun:
    """Made by ``begin`` or ``resume``; holds the run's lock until closed."""

    def __init__(self, writer: JournalWriter, state: RunState) -> None:
        self.writer, self.state = writer, state
        self._broken = False

    @classmethod
    def begin(cls, folder: Path, header: Header, start: Start) -> "LiveRun":
        """Start a run in a folder that has none."""
        state = RunState(folder, header, start)
        writer = JournalWriter.create(folder, header)
        state.path = writer.path
        return cls(writer, state)

    @classmethod
    def resume(
        cls,
        folder: Path,
        start: Start,
        *,
        asked: Mapping[str, Any],
        data: Mapping[str, str | None],
        task_spec: Mapping[str, Any] | None,
        context: RunContext,
        allow_changes: bool,
    ) -> "LiveRun":
        """Go on with a run; a torn tail is cut and the values are replayed.

        Args:
            asked: settings by name; a missing one, None and ``auto`` keep the run's own.
            data: hashes of the encoded examples, as the header names them.
            task_spec: as in ``Tuner``.
            context: what the run now has to go by.

        Raises:
            JournalError: damaged, in use, or of another bundle.
            TuningError: settings or examples other than the run's, and not ``allow_changes``.
        """
        writer, journal = JournalWriter.open(folder)
        try:
            state = RunState(journal.path, journal.header, start)
            state.take(journal)
            run = cls(writer, state)
            fixed = fixed_settings(state.history.settings)
            size = state.history.settings.batch_size
            if "batch_size" in fixed and context.examples < size:
                raise TuningError(
                    f"{writer.path}: a step of the run takes {size} training examples, "
                    f"{context.examples} are given: give more (--train), or start a new run in "
                    "another folder"
                )
            _same_task(journal.header.task, task_spec, writer.path)
            changes = run._changes(asked, data, context)
            free = ("steps", state.history.settings.options.memory)
            for field, before, now in changes:
                if field in free or before == FORGOTTEN:
                    continue
                if field in fixed or not allow_changes:
                    advice = "give the same, or allow changes (--allow-changes)"
                    if field in fixed:
                        advice = "give the same, or start a new run in another folder"
                    what = f"the run has {field}={_short(before)}, not {_short(now)}"
                    if field in _ROWS:
                        what = f"the run has other {_ROWS[field]} ({field} {_short(before)})"
                    raise TuningError(f"{writer.path}: {what}; {advice}")
            for field, _, now in changes:
                run.commit(Change(field, now))
        except BaseException:
            writer.close()
            raise
        return run

    def _changes(
        self, asked: Mapping[str, Any], data: Mapping[str, str | None], context: RunContext
    ) -> list[tuple[str, Any, Any]]:
        """``(field, value of the run, wanted value)`` where they differ."""
        have: dict[str, Any] = {**self.state.history.settings.to_dict(), **self.state.history.data}
        want = {**have, **data}
        asked = {name: value for name, value in asked.items() if value not in (None, "auto")}
        wanted = self.state.history.settings
        if asked.get("estimator", have["estimator"]) != have["estimator"]:
            want["estimator"] = asked["estimator"]  # refused, whatever would fit it
        elif asked:
            wanted = fit(changed(wanted, asked), context)
            want.update(wanted.to_dict())
        self._check_memory(wanted.options)
        if not wanted.options.keeps_words:  # hashes that were forgotten with the words stay so
            want |= {name: FORGOTTEN for name in data if have[name] == FORGOTTEN}
        return [(field, have[field], want[field]) for field in have if have[field] != want[field]]

    def _check_memory(self, wanted: Options) -> None:
        """Refuse to begin a memory of words, or to leave one as it is."""
        if wanted.keeps_words and not self.state.values.keeps_words:
            raise TuningError(
                f"{self.writer.path}: the run was begun without a memory of words; start one with "
                f"{wanted.memory} in another folder"
            )
        if self.state.history.settings.options.keeps_words and not wanted.keeps_words:
            raise TuningError(
                f"{self.writer.path}: the run keeps words of its texts; 'seedtune journal forget "
                "--all' takes them out, and it keeps none from then on"
            )

    def commit(self, record: Record) -> None:
        """Write a record, then let the state follow.

        Raises:
            JournalError: it could not be written; nothing changed, and the run takes no more.
        """
        if self._broken:
            raise JournalError(f"{self.writer.path}: interrupted while recording; open it again")
        self._broken = True  # an interrupt from here to the end leaves memory behind the file
        self.writer.append(record)
        self.state.advance(record)
        self._broken = False
        self.writer.sync_if_due()

    def end(self, reason: str) -> None:
        """Record why the loop ends, with the hash of the values, and sync."""
        self.commit(End(bytes.fromhex(self.state.sha256)[:16], reason))
        self.writer.sync()

    def tuned(self) -> Tuned:
        """The best evaluated state; the last one if nothing was evaluated."""
        history, best = self.state.history, self.state.history.best
        if best is None:
            message = f"the values after step {history.steps} ship; none was evaluated"
            return Tuned(self.state.values, history.steps, None, None, message)
        if best.step == 0:
            message = f"no evaluated step up to {history.steps} beat the start: the start ships"
        else:
            message = f"step {best.step} of {history.steps} is the best evaluated one and ships"
        if history.evaluations[-1].step < history.steps:
            message += f"; step {history.steps}, the last, was not evaluated"
        values = self.state.best_values
        return Tuned(values, best.step, best.loss, best.metric, message)

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
        for name in ("tokens", "positions", "candidates", "gold"):
            array = np.asarray(getattr(example, name))
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _same_task(
    known: Mapping[str, Any] | None, given: Mapping[str, Any] | None, path: Path
) -> None:
    """Refuse to go on with another task; how long texts are cut shows in the examples' hash."""
    if known is None or given is None:
        return
    if known["spec"] != given["spec"]:
        raise TuningError(
            f"{path}: the run has the task {known['spec']}, not {given['spec']}; give the same "
            "(or no --task), or start a new run in another folder"
        )


def _short(value: Any) -> str:
    """A setting for a message; hashes cut short."""
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text

"""A journal cut to a snapshot of the values: to replay it faster, or to forget what it kept."""

import contextlib
import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from ..errors import JournalError
from .file import Journal, read_journal, replace_journal_file, write_journal
from .history import GUARD_WINDOW, PROGRAM, Evaluated
from .lock import locked
from .replay import Replay, replay
from .start import Start
from .state import RunState, history_of, tensors_of

Tensors = dict[str, NDArray[Any]]


def compact(folder: Path | str, start: Start, *, tail: int = GUARD_WINDOW) -> Journal:
    """Replace all but the last ``tail`` steps by a snapshot of the values: 4 bytes each.

    Replaying gets shorter; rewinding reaches back to the snapshot only, and the run can no longer
    be shared as a journal alone. The best values so far and the estimator's state are kept beside
    the snapshot's. At least 64 steps stay, which the runaway guard looks back on.

    Raises:
        JournalError: damaged, of another bundle, or in use.
    """
    with locked(folder) as path:
        journal = _bound(path, start)
        cut = history_of(journal).steps - max(tail, GUARD_WINDOW)
        if cut <= journal.header.first_step:
            return journal
        done = replay(journal, start, until=cut)
        tensors = _tensors(done)
        if done.best is not None and done.best.step > 0:
            tensors |= tensors_of(done.best_values, "best")
        evaluations = done.history.evaluations
        found = _cut(path, journal, done, tensors, evaluations, _records_until(journal, cut))
        with contextlib.suppress(JournalError):  # it only takes room
            _clean(found)
        return found


def forget(folder: Path | str, start: Start) -> Journal:
    """Take the words of the texts that a run keeps out of it for good; what else it learned stays.

    The journal is cut to a snapshot of the last step without them. Nothing before that can be gone
    back to, and evaluations, notes and changes go too: evaluations were made with the words, so
    the last step ships until it is evaluated again. Steps from there on keep their words. Branches
    and values that were exported are left as they are (``Model.forget`` sees to the run's own).

    Raises:
        JournalError: damaged, of another bundle, in use, of an estimator that keeps no words, or a
            file that holds them cannot be removed; the message names it.
    """
    with locked(folder) as path:
        journal = _bound(path, start)
        done = replay(journal, start)
        if not done.values.keeps_words:
            raise JournalError(f"{path}: keeps no words of the texts that it was tuned on")
        if done.history.steps:
            tensors = _tensors(done) | tensors_of(done.values.without_words(), "values")
            journal = _cut(path, journal, done, tensors, [], len(journal.records))
        _clean(journal)
        return journal


def _bound(path: Path, start: Start) -> Journal:
    """The journal, if it is of this bundle."""
    journal = read_journal(path)
    RunState(path, journal.header, start)
    return journal


def _tensors(done: Replay) -> Tensors:
    """What a snapshot holds of a run's last step."""
    state = done.estimator.state
    kept = {f"state.{name}": each for name, each in state.items()}
    return tensors_of(done.values, "values") | kept


def _cut(
    path: Path,
    journal: Journal,
    done: Replay,
    tensors: Tensors,
    evaluations: list[Evaluated],
    records: int,
) -> Journal:
    """Put a snapshot of ``done`` in the place of a journal's first ``records``."""
    header, history = journal.header, done.history
    name = f"snapshot-{history.steps}.safetensors"
    if header.snapshot is not None and header.snapshot["file"] == name:
        name = f"snapshot-{history.steps}-again.safetensors"  # the journal still needs the other
    data = save_safetensors(tensors)
    replace_journal_file(path.parent / name, data)
    header = replace(
        header,
        settings=history.settings.to_dict(),
        train_sha256=history.data["train_sha256"] or "",
        eval_sha256=history.data["eval_sha256"],
        snapshot={
            "step": history.steps,
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "reference": history.reference,
            "evaluations": [
                [e.step, e.loss, e.metric]
                for e in evaluations
                if math.isfinite(e.loss) and math.isfinite(e.metric)
            ],
        },
        extra=header.extra | ({PROGRAM: history.program} if history.program else {}),
    )
    write_journal(path, header, [placed.record for placed in journal.records[records:]])
    return read_journal(path)


def _clean(journal: Journal) -> None:
    """Remove snapshots that the journal no longer names, those that a crash left included.

    Raises:
        JournalError: one cannot be removed.
    """
    snapshot = journal.header.snapshot
    kept = None if snapshot is None else snapshot["file"]
    for file in journal.path.parent.glob("snapshot-*"):
        if file.name != kept:
            try:
                file.unlink()
            except OSError as error:
                raise JournalError(f"{file}: cannot be removed ({error.strerror})") from None


def _records_until(journal: Journal, step: int) -> int:
    """Number of records before the step after ``step`` steps."""
    steps = journal.header.first_step
    for index, placed in enumerate(journal.records):
        if placed.is_step:
            if steps == step:
                return index
            steps += 1
    return len(journal.records)

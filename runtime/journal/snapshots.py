"""A journal cut to a snapshot of the values: to replay it faster, or to forget what it kept."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from ..errors import JournalError
from ..scoring.values import Values
from ..scoring.word_memory import WHEN, left_of, texts_in
from .file import Journal, read_journal, replace_journal_file, write_journal
from .format import FORGOTTEN, Header, Record
from .history import GUARD_WINDOW, PROGRAM, Evaluated
from .lock import locked
from .remembered import when_of
from .run_folder import remove_derived, snapshot_name, tidy, tidy_if_possible
from .start import Start
from .state import RunState, history_of, replay, tensors_of

Tensors = dict[str, NDArray[Any]]


def compact(folder: Path | str, start: Start) -> Journal:
    """Replace all but the last 64 steps, which the runaway guard looks back on, by a snapshot of
    the values: 4 bytes each.

    Replaying gets shorter; rewinding reaches back to the snapshot only, and the run can no longer
    be shared as a journal alone. The best values so far and the estimator's state are kept beside
    the snapshot's.

    Raises:
        JournalError: damaged, of another bundle, or in use.
    """
    with locked(folder) as path:
        journal = read_journal(path)
        RunState(path, journal.header, start)  # refuses another bundle's
        cut = history_of(journal).steps - GUARD_WINDOW
        if cut <= journal.header.first_step:
            return journal
        done = replay(journal, start, until=cut)
        tensors = _tensors(done, done.values)
        if done.best is not None and done.best.step > 0:
            tensors |= tensors_of(done.best_values, "best")
        header = _cut(path, done, tensors, done.history.evaluations)
        write_journal(path, header, _records_behind(journal, cut))
        tidy_if_possible(path.parent, header.snapshot_file)
        return read_journal(path)


Choose = Callable[[RunState], Sequence[slice]]
"""Which texts of a replayed run's memory are to go (see ``word_memory.texts_in``).

Raises:
    JournalError: none is.
"""


def forget(folder: Path | str, start: Start, choose: Choose | None = None) -> Journal:
    """Take words of the texts that a run keeps out of it for good; what else it learned stays.

    All of them go, or those of the texts that ``choose`` names.

    The journal is cut to a snapshot of the last step without them. Nothing before that can be gone
    back to. Evaluations go, too, as they were made with the words, so the last step ships until it
    is evaluated again; and so do notes, changes, the hashes of the rows, which would confirm
    guesses of them, and the files that ``run_folder`` says may hold words. If all words went, the
    run keeps no words from there on, unless it is told to. Branches, and what was written
    elsewhere, are left as they are.

    Raises:
        JournalError: damaged, of another bundle, in use, of an estimator that keeps no words, or a
            file that holds them cannot be removed; the message names it.
    """
    with locked(folder) as path:
        done = replay(path, start)
        if not done.values.keeps_words:
            raise JournalError(f"{path}: keeps no words of the texts that it was tuned on")
        header, settings = done.header, done.history.settings
        gone = None if choose is None else choose(done)
        remove_derived(path.parent)
        if done.history.steps:
            header = _cut(path, done, _forgetful(done, gone), [])
        if gone is None:
            settings = replace(settings, options=settings.options.forgetting())
        header = replace(
            header,
            settings=settings.to_dict(),
            train_sha256=FORGOTTEN,
            eval_sha256=FORGOTTEN,
        )
        write_journal(path, header, [])
        tidy(path.parent, header.snapshot_file)
        return read_journal(path)


def _tensors(done: RunState, values: Values) -> Tensors:
    """What a snapshot holds of a run's last step."""
    state = done.estimator.state
    return tensors_of(values, "values") | {f"state.{name}": each for name, each in state.items()}


def _forgetful(done: RunState, gone: Sequence[slice] | None) -> Tensors:
    """The same without the words of some texts, or of all."""
    values = done.values.without_words()
    if gone is None:
        gone = texts_in(done.values.words)
    else:
        values.words[:] = left_of(done.values.words, gone)
    tensors, when = _tensors(done, values), f"state.{WHEN}"
    if when in tensors:
        tensors[when] = left_of(when_of(done), gone)
    return tensors


def _cut(path: Path, done: RunState, tensors: Tensors, evaluations: list[Evaluated]) -> Header:
    """Write a snapshot of ``done``; the header of the journal that begins with it."""
    header, history = done.header, done.history
    name = snapshot_name(history.steps, header.snapshot_file)
    data = save_safetensors(tensors)
    replace_journal_file(path.parent / name, data)
    return replace(
        header,
        settings=history.settings.to_dict(),
        train_sha256=history.data["train_sha256"] or FORGOTTEN,
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


def _records_behind(journal: Journal, step: int) -> list[Record]:
    """The records from the step after ``step`` steps on."""
    steps = journal.header.first_step
    for index, placed in enumerate(journal.records):
        if placed.is_step:
            if steps == step:
                return [each.record for each in journal.records[index:]]
            steps += 1
    return []

"""What can be done with a run besides going on: rewind, branch, share and receive.

``snapshots`` has the rest.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from ..errors import JournalError
from ..hub import local_file
from .file import Journal, JournalWriter, read_journal, replace_journal_file, write_journal
from .format import Change, End, Note, Record, Reference
from .lock import locked
from .metrics import cut_metrics
from .run_folder import JOURNAL_FILE, check_output_of, remove_derived, tidy_if_possible
from .start import Start
from .state import RunState, history_of, need_step, replay

_CLOSED = re.compile(r"shared, (\d{1,15}) records before")


def rewind(folder: Path | str, step: int | None) -> Journal:
    """Cut a run back to the values after ``step`` steps; what came later is gone.

    The evaluation made there stays; a change of settings made there goes. So do files made of the
    run as it was (see ``run_folder``). A journal that is damaged behind ``step`` is whole again
    afterwards.

    Args:
        step: None goes to the last good step of a damaged journal and keeps every record before
            the damage. One that is not damaged loses a torn tail at most.

    Raises:
        JournalError: the run does not reach ``step``, is damaged in its header, or has another
            writer.
    """
    with locked(folder) as path:
        journal = read_journal(path, until=step, tolerate=step is None)
        kept = [*journal.records]
        if step is not None:
            need_step(journal, step, history_of(journal).steps)
            while kept and isinstance(kept[-1].record, (Change, End, Reference)):
                kept.pop()
        end = kept[-1].end if kept else journal.header_end
        if end < path.stat().st_size:
            _cut_back(path, end, history_of(replace(journal, records=tuple(kept))).steps)
        tidy_if_possible(path.parent, journal.header.snapshot_file)
        return read_journal(path)


def _cut_back(path: Path, end: int, steps: int) -> None:
    """Cut a run to the first ``end`` bytes of its journal, which are so many steps."""
    remove_derived(path.parent)
    try:
        cut_metrics(path.parent, steps)
        with open(path, "r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    except OSError as error:
        raise JournalError(f"{path}: cannot be written ({error.strerror})") from None


def branch(source: Path | str, target: Path | str, *, step: int | None = None) -> Journal:
    """Start a run in the folder ``target`` with the first ``step`` steps of another.

    The source may be a run folder or a shared journal file, may have a writer at work, and may be
    damaged behind ``step``. Settings that a run can change are given when the branch is resumed.

    Args:
        step: all steps by default.

    Raises:
        JournalError: the source does not reach ``step``, or ``target`` has a run already.
    """
    return _begin(read_journal(source, until=step), Path(target), step)


def _begin(journal: Journal, target: Path, step: int | None) -> Journal:
    """The run in ``target`` that the records read so far begin."""
    header = journal.header
    if step is not None:
        need_step(journal, step, history_of(journal).steps)
    if header.snapshot is not None and not os.path.exists(target / JOURNAL_FILE):
        name = Path(str(header.snapshot["file"])).name
        try:
            data = (journal.path.parent / name).read_bytes()
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"{error.filename}: {error.strerror}") from None
        replace_journal_file(target / name, data)
    writer = JournalWriter.create(target, header, records=_plain(journal))
    writer.close()
    return read_journal(target)


def share(source: Path | str, file: Path | str, start: Start) -> RunState:
    """Write a run as one journal file that gives the same values wherever the bundle is.

    The file ends with a closing record: the number of records before it and the hash of the values
    (the first 16 bytes of their SHA-256). ``receive`` refuses a file without it, so that one that
    was cut short anywhere does not pass for a shorter run.

    **What it tells of the examples.** No text and no token of theirs is in it, other than
    demonstrations of the task. But whoever has the bundle too can test guesses:

    * Each step holds numbers that come from the losses of its batch. A guessed text can be scored
      along the same noise and compared. With batches of one example this put the right text first
      of a thousand: such runs are refused, as are those of estimators that keep numbers of single
      examples. The mean over a larger batch makes guessing harder: with 16 examples the right text
      stood at rank 430 after one pass, 179 after 16 (``host_tools/bench/results/trust.md``). It is
      no guarantee: each further step on the same examples helps the guesser, and so do held-out
      losses of few rows; who knows the rest of a batch finds the missing text at any size.
    * The hash of all training examples, and that of the held-out ones, confirms a guess of all of
      them together: with few and short ones, such as a row or two with a number in them, by trying.
    * The task is in the header: its template, its labels, and demonstrations, which are whole rows.

    Raises:
        JournalError: the run was compacted, is damaged or of another bundle, its journal holds
            numbers of single examples, or ``file`` cannot be written.
        SeedtuneError: ``file`` is one of the run's own.
    """
    check_output_of(Path(source), Path(file))
    journal = read_journal(source)
    _may_be_shared(journal)
    done = replay(journal, start)
    records: list[Record] = []
    for record in _plain(journal):
        if isinstance(record, End):
            if _CLOSED.fullmatch(record.reason):
                continue  # of when it was shared before: a cut there would pass
            record = End(record.digest, "")  # why a session ended is free text, as notes are
        if not isinstance(record, Note):
            records.append(record)
    digest = bytes.fromhex(done.sha256)[:16]
    records.append(End(digest, f"shared, {len(records)} records before"))
    write_journal(Path(file), journal.header, records)
    return done


def _may_be_shared(journal: Journal) -> None:
    history = history_of(journal)
    keeps = " --without-words" if history.settings.options.keeps_words else ""
    instead = f"share the tuned values instead ('seedtune journal export{keeps}')"
    if history.spec.holds_examples:
        raise JournalError(
            f"{journal.path}: holds numbers of single examples, from which the training texts "
            f"may be guessed; {instead}"
        )
    sizes = [value for _, field, value in history.changes if field == "batch_size"]
    one = {
        "has batches of a single example (--batch-size 1)": (
            1 in (journal.header.settings["batch_size"], *sizes)
        ),
        "was trained on a single example": journal.header.extra.get("examples") == 1,
    }
    for what in (what for what, holds in one.items() if holds):
        raise JournalError(
            f"{journal.path}: {what}, so that each step holds a number of one training text, from "
            f"which it may be guessed; {instead}"
        )
    if journal.header.snapshot is not None:
        raise JournalError(
            f"{journal.path}: was compacted, so the journal alone does not give the values; "
            "export the values instead"
        )


def receive(file: Path | str, target: Path | str, start: Start) -> RunState:
    """Make a run folder of a shared journal, after a replay has confirmed its values.

    Raises:
        JournalError: damaged, cut short, not a shared file, of another bundle, or values that
            differ from the sender's.
        DownloadError: ``file`` is on the hub (see ``hub``), which does not deliver it.
    """
    journal = read_journal(local_file(file))
    if journal.torn_bytes:
        raise JournalError(f"{file}: the last {journal.torn_bytes} bytes are incomplete")
    last = journal.records[-1].record if journal.records else None
    counted = _CLOSED.fullmatch(last.reason) if isinstance(last, End) else None
    if counted is None:
        raise JournalError(
            f"{file}: has no closing record: it was cut short on its way, or was not written by "
            "'seedtune journal share' of this version; have it shared again"
        )
    if int(counted[1]) != len(journal.records) - 1:
        raise JournalError(
            f"{file}: has {len(journal.records) - 1} records, its sender wrote {counted[1]}; "
            "have it shared again"
        )
    done = replay(journal, start)
    _begin(journal, Path(target), None)
    return done


def _plain(journal: Journal) -> list[Record]:
    return [placed.record for placed in journal.records]

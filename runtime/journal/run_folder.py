"""What stands in a run's folder, by name, and what goes when the run is no longer what it was.

===================  ==============================================================  =============
file                 holds                                                           words of rows
===================  ==============================================================  =============
``journal.bin``      the run: all else follows from it and the bundle                if kept
``snapshot-*``       values that a compacted or forgetful journal begins with        if kept
``journal.lock``     the writer's process                                            no
``metrics.jsonl``    losses and times of steps (see ``metrics``)                     no
``DERIVED``          values, figures and pages made of the journal                   yes
===================  ==============================================================  =============

Beside them lie workplaces of processes that write one of these (see ``files.workplace``), and what
killed ones left in theirs.

**The order** in which an operation changes a run, so that a kill at any moment leaves nothing that
contradicts the journal: first ``remove_derived``, then the journal in one step, then ``tidy``,
which every later writer calls again.
"""

import contextlib
from pathlib import Path

from ..errors import JournalError
from ..files import check_output, clean_up, workplaces

JOURNAL_FILE = "journal.bin"
LOCK_FILE = "journal.lock"
METRICS_FILE = "metrics.jsonl"
VALUES_FILE = "values.safetensors"
"""Where ``seedtune tune`` puts what ships."""
OUTCOME_FILE = "outcome.json"
REPORT_FILE = "report.html"
DERIVED = (VALUES_FILE, OUTCOME_FILE, REPORT_FILE)
_SNAPSHOTS = "snapshot-*"


def snapshot_name(step: int, journal_has: str | None) -> str:
    """Name of a new snapshot after ``step`` steps, beside the one that the journal still needs."""
    name = f"snapshot-{step}.safetensors"
    return f"snapshot-{step}-again.safetensors" if name == journal_has else name


def check_output_of(run: Path, output: Path, own: str | None = None) -> None:
    """Refuse to write something made of a run over one of the run's own files.

    Args:
        run: its folder, or a journal file.
        own: name that what is written has in the run's folder, if it may lie there.

    Raises:
        SeedtuneError: it would be replaced; the message names it.
    """
    for file in run.iterdir() if run.is_dir() else ():
        known = file.name in (JOURNAL_FILE, LOCK_FILE, METRICS_FILE, *DERIVED)
        if (known and file.name != own) or file.match(_SNAPSHOTS):
            check_output(output, file)
    if run.is_file():
        check_output(output, run)


def remove_derived(folder: Path) -> None:
    """Remove what says how the run was, before the run becomes another.

    Raises:
        JournalError: one cannot be removed; the message names it.
    """
    for name in DERIVED:
        _remove(folder / name)


def tidy(folder: Path, snapshot: str | None) -> None:
    """Remove what killed processes left, and snapshots other than the one that the journal names.

    The caller holds the run's lock.

    Raises:
        JournalError: one cannot be removed, or somebody is writing in the folder.
    """
    clean_up(folder)
    for file in folder.glob(_SNAPSHOTS):
        if file.name != snapshot:
            _remove(file)
    for left in workplaces(folder):
        raise JournalError(
            f"{left}: another process is writing here, or it cannot be removed; try again after it"
        )


def tidy_if_possible(folder: Path, snapshot: str | None) -> None:
    """``tidy`` for those whom it does not matter to: what is left only takes room."""
    with contextlib.suppress(JournalError):
        tidy(folder, snapshot)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise JournalError(f"{file}: cannot be removed ({error.strerror})") from None

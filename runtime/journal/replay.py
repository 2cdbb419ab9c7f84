"""Replay: from a journal and the bundle that it belongs to back to the values, to the bit."""

from pathlib import Path

from .file import Journal, read_journal
from .start import Start
from .state import RunState, history_of, need_step


def replay(source: Journal | Path | str, start: Start, *, until: int | None = None) -> RunState:
    """Apply a journal's steps to the starting values.

    Args:
        source: a journal as read, or a run folder or journal file to read.
        start: the values and identity of the bundle that the run began from.
        until: number of steps to stop after; all by default.

    Returns:
        the state that its records leave.

    Raises:
        JournalError: damaged, of another bundle, too short for ``until``, or the values differ
            from a hash that the journal recorded.
    """
    journal = source if isinstance(source, Journal) else read_journal(source, until=until)
    state = RunState(journal.path, journal.header, start)
    if until is not None:
        need_step(journal, until, history_of(journal, until=until).steps)
    state.take(journal, until=until)
    return state

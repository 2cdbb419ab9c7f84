"""Replay: from a journal and the bundle that it belongs to back to the values, to the bit."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..estimators import Estimator
from ..scoring.values import Values
from .file import Journal, read_journal
from .history import Evaluated, History
from .start import Start
from .state import RunState, history_of, need_step


@dataclass(frozen=True)
class Replay:
    """A journal replayed."""

    journal: Journal
    state: RunState
    """As the records left it."""
    start: Start

    @cached_property
    def best_values(self) -> Values:
        """Values of the best evaluated step; the last values if nothing was evaluated.

        Raises:
            JournalError: see ``best_values_of``.
        """
        return best_values_of(self.state, self.journal, self.start)

    @property
    def history(self) -> History:
        """Settings in force, steps, evaluations, skips."""
        return self.state.history

    @property
    def estimator(self) -> Estimator:
        """In the state that the steps left it in."""
        return self.state.estimator

    @property
    def values(self) -> Values:
        """After the last step."""
        return self.state.values

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation; None if nothing was evaluated."""
        return self.state.best

    @property
    def sha256(self) -> str:
        """Hash of ``values``."""
        return self.state.sha256


def replay(source: Journal | Path | str, start: Start, *, until: int | None = None) -> Replay:
    """Apply a journal's steps to the starting values.

    Args:
        source: a journal as read, or a run folder or journal file to read.
        start: the values and identity of the bundle that the run began from.
        until: number of steps to stop after; all by default.

    Raises:
        JournalError: damaged, of another bundle, too short for ``until``, or the values differ
            from a hash that the journal recorded.
    """
    journal = source if isinstance(source, Journal) else read_journal(source, until=until)
    state = RunState(journal.path, journal.header, start)
    if until is not None:
        need_step(journal, until, history_of(journal, until=until).steps)
    _advance(state, journal, until)
    return Replay(journal, state, start)


def best_values_of(state: RunState, journal: Journal, start: Start) -> Values:
    """Values of the best evaluated step, by a second replay where ``state`` has not kept them.

    Raises:
        JournalError: that step lies before what a compacted journal holds.
    """
    kept, best = state.best_values, state.best
    if kept is not None or best is None:
        return state.values if kept is None else kept
    need_step(journal, best.step, state.history.steps)
    earlier = RunState(journal.path, journal.header, start)
    _advance(earlier, journal, best.step)
    return earlier.values


def _advance(state: RunState, journal: Journal, until: int | None) -> None:
    for placed in journal.records:
        if placed.is_step and until is not None and state.history.steps == until:
            break
        state.advance(placed.record)

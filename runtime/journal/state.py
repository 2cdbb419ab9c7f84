"""The state that a journal's records add up to: history, values, best values, estimator; replay,
from a journal and the bundle that it belongs to back to the values, to the bit; and a live run.

One state machine: the live loop feeds it each record that it has written, a replay the records that
it reads. So what is in memory is always what a replay of the file gives.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from ..errors import JournalError, TuningError
from ..estimators import Estimator, make_estimator
from ..scoring.values import Values
from .file import Journal, JournalWriter, read_journal
from .format import Change, End, Evaluation, Header, Record, Signs, Step
from .history import Evaluated, History
from .start import Start


class RunState:
    """Begins at a journal's header; ``advance`` takes its records, one after another."""

    def __init__(self, path: Path, header: Header, start: Start) -> None:
        """
        Args:
            path: of the journal, beside which a compacted one has its snapshot.

        Raises:
            JournalError: of another bundle, a header that makes no sense, or a snapshot that is
                missing or altered.
        """
        self.path, self.header = path, header
        self.history = History(header, str(path))
        if header.bundle_sha256 != start.bundle_sha256:
            raise JournalError(
                f"{path}: belongs to bundle {header.bundle_sha256[:12]}..., "
                f"not {start.bundle_sha256[:12]}..."
            )
        self.values = self._begun(start)
        """Live."""
        self.estimator = self._fresh_estimator()
        """In the state that the steps so far left it in."""
        self._best = self.values.copy()
        if header.snapshot is not None:
            self._take_snapshot(header.snapshot)

    def advance(self, record: Record) -> None:
        """Let history and values follow the next record.

        Raises:
            JournalError: the values are not those whose hash the record holds, or the record makes
                no sense here.
        """
        if isinstance(record, (Step, Signs)):
            stored = (
                np.frombuffer(record.packed, np.uint8)
                if isinstance(record, Signs)
                else np.array(record.scalars, dtype=np.float16)
            )
            self._apply(stored)
        elif isinstance(record, End) and record.digest.hex() != self.sha256[:32]:
            raise JournalError(
                f"{self.path}: values after step {self.history.steps} are not those that were "
                f"recorded ({self.sha256[:12]}... against {record.digest.hex()[:12]}...)"
            )
        self.history.add(record)
        if isinstance(record, Change):
            state = self.estimator.state
            self.estimator = self._fresh_estimator()
            self.estimator.state.update(state)
        if isinstance(record, Evaluation) and self.best is self.history.evaluations[-1]:
            self._best = self.values.copy()

    def take(self, journal: Journal, *, until: int | None = None) -> None:
        """``advance`` by the records of a journal, up to so many steps.

        Raises:
            JournalError: as ``advance``.
        """
        for placed in journal.records:
            if placed.is_step and until is not None and self.history.steps == until:
                break
            self.advance(placed.record)

    def _apply(self, stored: NDArray[Any]) -> None:
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what a crafted journal leads to
                self.estimator.apply(self.values, stored, self.history.next_step)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            if self.header.snapshot is None:
                raise
            raise JournalError(
                f"{self.path}: the estimator's state in its snapshot makes no sense ({error}); "
                "restore a copy of both"
            ) from error

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation; None if nothing was evaluated."""
        return self.history.best

    @property
    def best_values(self) -> Values:
        """Values of the best evaluated step, the last ones if nothing was evaluated."""
        return self.values if self.best is None else self._best

    @property
    def sha256(self) -> str:
        """Hash of ``values``."""
        return self.values.sha256

    def _begun(self, start: Start) -> Values:
        """What the run's first step moved."""
        header, name = self.header, self.path
        try:
            values = start.tuned_from(header.part)
        except ValueError as error:
            raise JournalError(f"{name}: header does not make sense: {error}") from None
        if header.entries != values.entries:
            raise JournalError(f"{name}: has {header.entries} values, the bundle {values.entries}")
        if header.values_sha256 != values.sha256:
            raise JournalError(f"{name}: the bundle's values are not those of the run's start")
        return values

    def _fresh_estimator(self) -> Estimator:
        """One that moves such values, with the settings now in force."""
        header = self.header
        try:
            made = make_estimator(self.history.settings, header.shape, self.values.part)
        except (TuningError, ValueError) as error:
            raise JournalError(f"{self.path}: header does not make sense: {error}") from None
        if (made.scalar_count, made.signs) != (header.scalar_count, header.signs):
            held = f"{header.signs} signs" if header.signs else f"{header.scalar_count} scalars"
            kind = header.settings["estimator"]
            raise JournalError(f"{self.path}: {held} a step do not fit {kind}")
        return made

    def _take_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Begin with the values, the best until then, and the estimator's state of a snapshot."""
        file, begun = self.path.parent / Path(str(self.header.snapshot_file)).name, self.values
        try:
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() != snapshot["sha256"]:
                raise JournalError(f"{file}: is not the snapshot that {self.path} was cut at")
            tensors = load_safetensors(data)
            self.values = _stored(tensors, "values", begun)
            self._best = _stored(tensors, "best", begun) if "best" in tensors else begun
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise JournalError(
                f"{file}: snapshot of {self.path} cannot be read ({error})"
            ) from None
        prefix = "state."
        self.estimator.state.update(
            {n.removeprefix(prefix): t.copy() for n, t in tensors.items() if n.startswith(prefix)}
        )


def tensors_of(values: Values, name: str) -> dict[str, NDArray[Any]]:
    """Values as a snapshot holds them: the sensitive ones by their name, a part's behind it."""
    own = {} if values.part is None else {f"{name}.own": values.part.own}
    return {name: values.sensitive, **own}


def _stored(tensors: Mapping[str, NDArray[Any]], name: str, begun: Values) -> Values:
    """Inverse of ``tensors_of``, for values of the form of ``begun``; ValueError for others."""
    found = begun.copy()
    for place, own in tensors_of(found, name).items():
        if tensors[place].dtype != np.float32 or tensors[place].shape != own.shape:
            raise ValueError(f"{tensors[place].dtype} {tensors[place].shape} {place}")
        own[:] = tensors[place]
    return found


def history_of(journal: Journal, *, until: int | None = None) -> History:
    """The history that a journal's records add up to, without any values."""
    history = History(journal.header, str(journal.path))
    for placed in journal.records:
        if placed.is_step and until is not None and history.steps == until:
            break
        history.add(placed.record)
    return history


def need_step(journal: Journal, step: int, last: int) -> None:
    """Refuse a step that the journal, which goes on to step ``last``, cannot give."""
    first = journal.header.first_step
    if not first <= step <= last:
        held = f"starts at step {first}" if step < first else f"ends at step {last}"
        raise JournalError(f"{journal.path}: step {step} cannot be reached; it {held}")


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


class LiveRun:
    """A run in progress: its journal and the state that goes with it. Made by ``begin`` or
    ``open``; holds the run's lock until closed.

    Every change goes through ``commit``: the record is written, then the state follows.
    """

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
    def open(cls, folder: Path, start: Start) -> "LiveRun":
        """Go on with a run; a torn tail is cut and the values are replayed.

        Raises:
            JournalError: damaged, in use, or of another bundle.
        """
        writer, journal = JournalWriter.open(folder)
        try:
            return cls(writer, replay(journal, start))
        except BaseException:
            writer.close()
            raise

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

    def close(self) -> None:
        """Sync and release the run. Calling it again does nothing."""
        self.writer.close()

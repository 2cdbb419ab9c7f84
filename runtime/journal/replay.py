"""Replay: from a journal and the bundle that it belongs to back to the values, to the bit."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from ..bundle.exported_values import values_sha256
from ..errors import JournalError
from ..estimators import Estimator, make_for_run
from ..estimators.readout import Readout
from ..scoring.answer_head import AnswerHeadShape
from .file import Journal, read_journal
from .format import End, Header, Step
from .history import Evaluated, History
from .start import Start


@dataclass(frozen=True)
class Replay:
    """A journal replayed."""

    journal: Journal
    history: History
    estimator: Estimator | Readout
    """In the state that the steps left it in."""
    values: NDArray[np.float32]
    """float32 ``[K]`` after the last step."""
    best: Evaluated | None
    best_values: NDArray[np.float32]
    """float32 ``[K]`` of the best evaluated step; the last values if nothing was evaluated."""

    @property
    def sha256(self) -> str:
        """Hash of ``values``."""
        return values_sha256(self.values)


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
    name, header = str(journal.path), journal.header
    shape = readout_shape(header, name)
    check_binding(journal, start)
    start = start.with_readout(shape)
    whole = history_of(journal, until=until)
    if until is not None:
        need_step(journal, until, whole.steps)
    best = whole.best
    values, best_values, state = _first_values(journal, start)
    history = History(header, name)
    estimator = make_for_run(history.settings, start.basis, shape)
    estimator.state.update(state)
    if estimator.scalar_count != header.scalar_count:
        raise JournalError(
            f"{name}: {header.scalar_count} scalars a step do not fit {history.settings.estimator}"
        )
    if header.snapshot is not None and best is not None and best.step == history.steps:
        best_values = values.copy()
    for placed in journal.records:
        record = placed.record
        if placed.is_step and until is not None and history.steps == until:
            break
        if isinstance(record, Step):
            estimator.apply(
                values,
                np.array(record.scalars, dtype=np.float16),
                seed=history.settings.seed,
                step=history.steps,
                lr=history.settings.learning_rate(history.steps),
            )
        elif isinstance(record, End) and record.digest.hex() != values_sha256(values)[:32]:
            raise JournalError(
                f"{name}: values after step {history.steps} are not those that were recorded "
                f"({values_sha256(values)[:12]}... against {record.digest.hex()[:12]}...)"
            )
        history.add(record)
        if placed.is_step and best is not None and best.step == history.steps:
            best_values = values.copy()
    if best is None:
        best_values = values
    return Replay(journal, history, estimator, values, best, best_values)


def history_of(journal: Journal, *, until: int | None = None) -> History:
    """The state that a journal's records add up to, without any values."""
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


def readout_shape(header: Header, name: str) -> AnswerHeadShape | None:
    """Sizes of the run's readout, if it has one; ``name`` is what errors call the journal."""
    kind = header.settings.get("estimator")
    if (header.readout is None) != (kind != "readout"):
        raise JournalError(f"{name}: header does not make sense: estimator {kind} and its readout")
    if header.readout is None:
        return None
    try:
        shape = AnswerHeadShape(**header.readout)
    except TypeError as error:
        raise JournalError(f"{name}: header does not make sense: {error}") from None
    sizes = (shape.rows, shape.width, shape.answers)
    if not all(type(size) is int and size >= 1 for size in sizes) or shape.answers % shape.rows:
        raise JournalError(f"{name}: header does not make sense: readout {header.readout}")
    return shape


def check_binding(journal: Journal, start: Start) -> None:
    """Refuse a journal of another bundle, or starting values that are not the journal's."""
    header = journal.header
    start = start.with_readout(readout_shape(header, str(journal.path)))
    if header.bundle_sha256 != start.bundle_sha256:
        raise JournalError(
            f"{journal.path}: belongs to bundle {header.bundle_sha256[:12]}..., "
            f"not {start.bundle_sha256[:12]}..."
        )
    if header.entries != len(start.values):
        raise JournalError(
            f"{journal.path}: has {header.entries} values, the bundle {len(start.values)}"
        )
    if header.values_sha256 != values_sha256(start.values):
        raise JournalError(f"{journal.path}: the bundle's values are not those of the run's start")


def _first_values(
    journal: Journal, start: Start
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray[Any]]]:
    """Fresh copies of the values that the first record applies to, of the best until then, and
    of the estimator's state."""
    snapshot = journal.header.snapshot
    if snapshot is None:
        return start.values.copy(), start.values, {}
    path = journal.path.parent / Path(str(snapshot["file"])).name
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != snapshot["sha256"]:
            raise JournalError(f"{path}: is not the snapshot that {journal.path} was cut at")
        tensors = load_safetensors(data)
        values, best = tensors["values"], tensors.get("best", start.values)
    except (OSError, SafetensorError, KeyError) as error:
        raise JournalError(f"{path}: snapshot of {journal.path} cannot be read ({error})") from None
    for tensor in (values, best):
        if tensor.dtype != np.float32 or tensor.shape != start.values.shape:
            raise JournalError(f"{path}: snapshot has {tensor.dtype} {tensor.shape} values")
    prefix = "state."
    state = {n.removeprefix(prefix): t.copy() for n, t in tensors.items() if n.startswith(prefix)}
    return values.copy(), best.copy(), state

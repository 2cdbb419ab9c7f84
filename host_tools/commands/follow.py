"""Runs a tuner to its end while showing loss, speed and time left on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import Output

if TYPE_CHECKING:
    from seedtune.runtime.tuning.tuner import Tuner


def follow(tuner: Tuner, output: Output, *, metric: str, held_out: int) -> None:
    """Iterate all steps of ``tuner``.

    Args:
        metric: name of the task's metric.
        held_out: number of held-out examples, for the word that comes before their long first
            evaluation.
    """
    history, first = tuner.history, tuner.history.steps
    if tuner.cut_bytes:
        output.note(f"cut {tuner.cut_bytes} bytes of an unfinished record off the journal")
    if first:
        output.note(f"resuming at step {first}")
    if tuner.loss_noise is not None:
        found = tuner.loss_noise
        output.note(f"loss noise {found.sigma:.2g} at loss {found.loss:.3g}: eps {found.eps:g}")
        if not found.adequate:
            output.note("the noise is large against the gradient; a larger batch would help")
    if tuner.step_size is not None:
        size = tuner.step_size
        output.note(f"lr {size.lr:g} from {size.forwards} forwards of trial steps")
    if held_out and not history.evaluations:
        output.note(f"evaluating the start on {held_out} held-out examples")
    shown = len(history.evaluations)
    before, busy = tuner.forwards, 0.0
    smooth: float | None = None
    with output.tuning(history.settings.steps, first) as progress:
        for report in tuner:
            shown = _new_evaluations(tuner, output, metric, shown)
            if report.skipped is not None:
                output.note(f"step {report.step} skipped: {report.skipped}")
            else:
                smooth = report.loss if smooth is None else 0.9 * smooth + 0.1 * report.loss
            busy += report.seconds
            rate = (report.forwards - before) / max(busy, 1e-9)
            loss = report.loss if smooth is None else smooth
            progress(report.step, f"loss {loss:.3f}  {rate:.2f} forwards/s")
        _new_evaluations(tuner, output, metric, shown)


def _new_evaluations(tuner: Tuner, output: Output, metric: str, shown: int) -> int:
    """Say what was evaluated since ``shown`` evaluations; returns how many there are now."""
    found = tuner.history.evaluations
    for item in found[shown:]:
        output.note(f"step {item.step}: held-out loss {item.loss:.4f}, {metric} {item.metric:.4f}")
    return len(found)

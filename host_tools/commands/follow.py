"""Runs a tuner to its end while showing loss, speed, memory and time left on stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .output import Output

if TYPE_CHECKING:
    from seedtune.runtime.tuning.tuner import Tuner


class Follower:
    """Shows one session of a run. The tuner is to be given ``evaluating`` as ``on_evaluation``."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._show: Callable[[str, int, int, str], None] = lambda *now: None

    def evaluating(self, done: int, total: int) -> None:
        """So many examples of an evaluation are done."""
        self._show("evaluating", done, total, "")

    def run(self, tuner: Tuner, *, metric: str, held_out: int) -> None:
        """Iterate all steps of ``tuner``.

        Args:
            metric: name of the task's metric.
            held_out: number of held-out examples, for the word that comes before their long first
                evaluation.
        """
        from seedtune.runtime.engines.memory import resident_bytes

        output, history = self._output, tuner.history
        first, total = history.steps, history.settings.resolved_steps
        _say_how_it_begins(tuner, output)
        if held_out and not history.evaluations:
            output.note(f"evaluating the start on {held_out} held-out examples")
        told = len(history.evaluations)
        before, busy = tuner.forwards, 0.0
        smooth: float | None = None
        with output.following(first) as self._show:
            self._show("tuning", first, total, "")

            def tell() -> None:
                nonlocal told
                for item in tuner.history.evaluations[told:]:
                    output.note(
                        f"step {item.step}: held-out loss {item.loss:.4f}, "
                        f"{metric} {item.metric:.4f}"
                    )
                told = len(tuner.history.evaluations)

            for report in tuner:
                tell()
                if report.skipped is not None:
                    output.note(f"step {report.step} skipped: {report.skipped}")
                else:
                    smooth = report.loss if smooth is None else 0.9 * smooth + 0.1 * report.loss
                busy += report.seconds
                rate = (report.forwards - before) / max(busy, 1e-9)
                figures = f"loss {report.loss if smooth is None else smooth:.3f}"
                figures += f"  {rate:.2f} forwards/s"
                if (held := resident_bytes()) is not None:
                    figures += f"  {held / 1e6:.0f} MB"
                self._show("tuning", report.step, total, figures)
            tell()
        self._show = lambda *now: None


def _say_how_it_begins(tuner: Tuner, output: Output) -> None:
    if tuner.cut_bytes:
        output.note(f"cut {tuner.cut_bytes} bytes of an unfinished record off the journal")
    if tuner.history.steps:
        output.note(f"resuming at step {tuner.history.steps}")
    if tuner.loss_noise is not None:
        found = tuner.loss_noise
        output.note(f"loss noise {found.sigma:.2g} at loss {found.loss:.3g}: eps {found.eps:g}")
        if not found.adequate:
            output.note("the noise is large against the gradient; a larger batch would help")

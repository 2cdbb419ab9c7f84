"""The curves of a run and the words for them, as picture and page show them: what they say of more
steps, and how long twice as many would take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seedtune.runtime.journal.file import Journal, read_journal
from seedtune.runtime.journal.history import History
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.state import history_of

from .outcome_file import read_outcome

_SMOOTHING = 0.95
LOSS_TITLE = "How surprised the model is by the right answers (loss): lower is better"
ACROSS = "times that the model has read a batch of rows (forward passes)"
"""What a chart's bottom counts."""
LITTLE = 0.05
"""Share of all that the loss has fallen: a doubling of the rows that brings less brings little."""
LEAST = 0.005
"""Share of the loss at the start: less than that is noise of a few hundred rows."""
_SPREAD = (6.3, 2.9, 2.4, 2.1)
"""Student's t for nine in ten, by degrees of freedom from 1 on; 2 beyond."""


class Point(NamedTuple):
    """A held-out evaluation, as it is drawn."""

    step: int
    forwards: int
    loss: float
    metric: float


@dataclass(frozen=True)
class Curves:
    """Read by ``run_curves``."""

    journal: Journal
    history: History
    metric: str
    higher_is_better: bool
    batches: list[tuple[int, float]]
    """Forwards and loss of each batch."""
    evaluated: list[Point]
    best: Point | None
    """What ships."""
    outcome: dict[str, Any]
    """What ``seedtune tune`` found at the end; empty of a run that something else tuned."""

    @property
    def smoothed(self) -> list[tuple[int, float]]:
        """``batches`` as a moving average without the pull towards its first value."""
        total = weight = 0.0
        smooth = []
        for at, value in self.batches:
            total = _SMOOTHING * total + (1 - _SMOOTHING) * value
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
            smooth.append((at, total / weight))
        return smooth

    @property
    def title(self) -> str:
        """What came of the run, in a line: on rows that chose nothing, where there are any."""
        work = f"{self.history.steps} steps of {self.history.settings.batch_size} rows"
        judged = self.judged
        if judged is not None:
            of = f"{self.outcome['judged_rows']} rows that chose nothing"
            return f"{self.metric} from {judged[0]} to {judged[1]} on {of}, {work}"
        if self.best is None or not self.evaluated:
            return f"Training: {work}"
        start, best = self.said(self.evaluated[0].metric), self.said(self.best.metric)
        return f"{self.metric} from {start} to {best} on the rows that chose the step, {work}"

    @property
    def judged(self) -> tuple[str, str] | None:
        """The metric before and after on rows that chose nothing, as people say it."""
        if not self.outcome.get("judged_rows"):
            return None
        both = [(self.outcome.get(when) or {}).get(self.metric) for when in ("before", "after")]
        said = [self.said(metric) for metric in both if metric is not None]
        return (said[0], said[1]) if len(said) == 2 else None  # null: it was not finite

    def said(self, metric: float) -> str:
        """A metric as people say it."""
        return f"{metric:.1%}" if self.metric == "accuracy" else f"{metric:.4g}"


def run_curves(run: Path) -> Curves:
    """The curves of the run in a folder.

    Raises:
        JournalError: no run there, or damaged.
    """
    journal = read_journal(run)
    history = history_of(journal)
    probes = history.settings.options.forwards
    batches = [
        (line["step"] * probes, float(line["loss"]))
        for line in read_metrics(run, steps=history.steps)
        if line.get("kind") == "step" and line.get("loss") is not None
    ]

    def placed(step: int, loss: float, metric: float) -> Point:
        return Point(step, step * probes, loss, metric)

    return Curves(
        journal=journal,
        history=history,
        metric=str(journal.header.metric["name"]),
        higher_is_better=history.higher_is_better,
        batches=batches,
        evaluated=[placed(*item) for item in history.evaluations],
        best=None if history.best is None else placed(*history.best),
        outcome=read_outcome(run, journal, history),
    )


def metric_title(metric: str, higher_is_better: bool) -> str:
    """What a chart of a task's metric shows."""
    known = {
        "accuracy": "Share of held-out rows answered right",
        "perplexity": "Between how many words the model wavers, on held-out rows (perplexity)",
    }
    direction = "higher" if higher_is_better else "lower"
    return f"{known.get(metric, f'{metric} on held-out rows')}: {direction} is better"


Shape = Literal["falling", "flat", "overfitting", "no gain", "unknown"]


class Curve(NamedTuple):
    """``shape`` for programs, ``text`` for people."""

    shape: Shape
    text: str


def read_curve(history: History, steps: Sequence[dict[str, Any]]) -> Curve:
    """What held-out losses say or, without held-out rows, the losses of batches.

    Args:
        steps: lines of ``metrics.jsonl`` (see ``metrics.read_metrics``), for the latter.
    """
    size = history.settings.batch_size
    points = [
        (item.step * size, item.loss) for item in history.evaluations if math.isfinite(item.loss)
    ]
    if history.evaluations:
        return _of_held_out(points)
    return _of_batches([float(line["loss"]) for line in steps if line.get("loss") is not None])


def _of_held_out(points: list[tuple[int, float]]) -> Curve:
    """The verdict on pairs of rows read and loss. Learning is even over doublings of the rows, so
    its slope is taken there, over the last two, and against the scatter of the losses around it."""
    later = [point for point in points if point[0]]
    if len(points) == len(later) or len(later) < 3:
        if len(points) > len(later) and later and min(later)[1] >= points[0][1]:
            return Curve("no gain", "the held-out loss never fell below its start")
        return Curve(
            "unknown",
            "too few evaluations to tell whether more rows would help; more come with "
            "--eval-every N",
        )
    start, (rows, last) = points[0][1], later[-1]
    least_rows, lowest = min(later, key=lambda point: point[1])
    fallen, noise = start - lowest, LEAST * abs(start)
    if fallen <= noise:
        return Curve("no gain", "the held-out loss never fell below its start")
    window = [point for point in later if 4 * point[0] >= rows]
    slope, error = _slope(window if len(window) >= 3 else later[-3:])
    little = max(LITTLE * fallen, noise)
    told = f"{slope:+.2g} ± {error:.1g} with every doubling of the rows, {rows:,} read"
    if slope > error and last - lowest > little:
        return Curve(
            "overfitting",
            f"the held-out loss rises since {least_rows:,} rows were read ({lowest:.3g}, now "
            f"{last:.3g}): overfitting; other rows would help, the same ones again would not",
        )
    if -slope > max(error, little):
        return Curve(
            "falling",
            f"the held-out loss still falls ({told}): twice as many rows would bring it to about "
            f"{last + slope:.2g}",
        )
    if abs(slope) + error <= 2 * little:
        return Curve(
            "flat",
            f"the held-out loss is flat ({told}): more rows of this kind would help little",
        )
    return Curve(
        "unknown",
        f"the held-out losses scatter too much to tell whether more rows would help ({told}); "
        "more held-out rows or evaluations (--eval-every N) would tell",
    )


def _slope(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Change of the loss with a doubling of the rows, and what chance may have in it."""
    across, losses = [math.log2(rows) for rows, _ in points], [loss for _, loss in points]
    slope, start = statistics.linear_regression(across, losses)
    rest = sum((loss - start - slope * at) ** 2 for at, loss in zip(across, losses, strict=True))
    freedom = len(points) - 2
    spread = len(points) * statistics.pvariance(across)
    wide = _SPREAD[freedom - 1] if freedom <= len(_SPREAD) else 2.0
    return slope, wide * math.sqrt(rest / freedom / spread)


def _of_batches(losses: list[float]) -> Curve:
    """The verdict on losses of batches: two standard errors tell a fall from chance."""
    third = len(losses) // 3
    if third < 5:
        return Curve("unknown", "too few steps to tell whether more would help")
    before, after = losses[-2 * third : -third], losses[-third:]
    error = math.sqrt((statistics.variance(before) + statistics.variance(after)) / third)
    drop = statistics.fmean(before) - statistics.fmean(after)
    rest = "; only held-out rows (--data) can tell learning from learning by heart"
    if drop > 2 * error:
        return Curve("falling", f"the loss of the training rows still falls{rest}")
    return Curve("flat", f"the loss of the training rows is flat over the last third{rest}")


def seconds_of_as_many_again(history: History, lines: Sequence[dict[str, Any]]) -> float | None:
    """Seconds that as many further steps and evaluations as the run has would take, or None where
    nothing was timed.

    Args:
        lines: of ``metrics.jsonl``, which may hold only every n-th step of a long run.
    """
    total = 0.0
    for kind, count in (("step", history.steps), ("evaluation", len(history.evaluations))):
        timed = [float(line["seconds"]) for line in lines if line["kind"] == kind]
        if timed:
            total += sum(timed) / len(timed) * count
    return total or None


def duration(seconds: float) -> str:
    """``95 s``, ``7 min`` or ``2.5 h``."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""The curves of a run and the words for them, as picture and page show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from seedtune.runtime.journal.file import Journal, read_journal
from seedtune.runtime.journal.history import History
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.state import history_of

from .outcome_file import read_outcome

_SMOOTHING = 0.95
LOSS_TITLE = "How surprised the model is by the right answers (loss): lower is better"
ACROSS = "times that the model has read a batch of rows (forward passes)"
"""What a chart's bottom counts."""


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

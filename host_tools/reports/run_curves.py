"""The curves of a run and the words for them, as picture and page show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from seedtune.runtime.estimators import forwards_a_step
from seedtune.runtime.journal.file import Journal, read_journal
from seedtune.runtime.journal.history import History
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.state import history_of

_SMOOTHING = 0.95


class Evaluated(NamedTuple):
    """A held-out evaluation."""

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
    evaluated: list[Evaluated]
    best: Evaluated | None
    """What ships."""

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
        """What the run did, in a line."""
        settings = self.history.settings
        work = f"{self.history.steps} steps of {settings.batch_size} rows"
        if self.best is None or not self.evaluated:
            return f"Training: {work}"
        start = self.said(self.evaluated[0].metric)
        return f"Training: {self.metric} from {start} to {self.said(self.best.metric)}, {work}"

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
    probes = forwards_a_step(history.settings)
    batches = [
        (line["step"] * probes, float(line["loss"]))
        for line in read_metrics(run, steps=history.steps)
        if line.get("kind") == "step" and line.get("loss") is not None
    ]

    def placed(step: int, loss: float, metric: float) -> Evaluated:
        return Evaluated(step, step * probes, loss, metric)

    return Curves(
        journal=journal,
        history=history,
        metric=str(journal.header.metric["name"]),
        higher_is_better=history.higher_is_better,
        batches=batches,
        evaluated=[placed(*item) for item in history.evaluations],
        best=None if history.best is None else placed(*history.best),
    )


def measure_words(metric: str, higher_is_better: bool) -> tuple[str, str]:
    """A title and the name of an axis for a task's metric."""
    direction = "higher" if higher_is_better else "lower"
    known = {
        "accuracy": ("Share of held-out rows answered right", "answered right"),
        "perplexity": (
            "Between how many words the model wavers, on held-out rows (perplexity)",
            "perplexity",
        ),
    }
    title, axis = known.get(metric, (f"{metric} on held-out rows", metric))
    return f"{title}: {direction} is better", axis

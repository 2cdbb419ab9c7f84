"""One PNG of a run: loss and held-out metric over forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.errors import JournalError, SeedtuneError
from seedtune.runtime.estimators import forwards_a_step
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.history import History
from seedtune.runtime.journal.state import history_of
from seedtune.runtime.tuning.metrics import read_metrics

_SMOOTHING = 0.95


def draw_run(run: Path, file: Path) -> None:
    """Draw ``run`` (a run folder) into the PNG ``file``.

    Evaluations come from the journal, batch losses from the advisory ``metrics.jsonl``; without
    the latter the picture shows evaluations alone.

    Raises:
        JournalError: no run there, damaged, or nothing recorded yet.
        SeedtuneError: the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    journal = read_journal(run)
    history = history_of(journal)
    losses = [
        (line["step"], line["loss"])
        for line in read_metrics(run, steps=history.steps)
        if line.get("kind") == "step" and line.get("loss") is not None
    ]
    if not losses and not history.evaluations:
        raise JournalError(f"{journal.path}: has neither evaluations nor steps to draw yet")
    probes = forwards_a_step(history.settings)
    # Without pyplot, so that no global state and no display are touched.
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    if losses:
        steps, values = (np.array(column, dtype=np.float64) for column in zip(*losses, strict=True))
        upper.plot(steps * probes, values, color="0.8", linewidth=0.8, label="batch")
        upper.plot(steps * probes, _smoothed(values), color="C0", label="batch, smoothed")
    if history.evaluations:
        at = [item.step * probes for item in history.evaluations]
        upper.plot(at, [item.loss for item in history.evaluations], "o-C1", label="held out")
        lower.plot(at, [item.metric for item in history.evaluations], "o-C1", label="held out")
        _mark_best(history, probes, lower)
    upper.set_ylabel("loss")
    upper.legend()
    lower.set_ylabel(str(journal.header.metric["name"]))
    lower.set_xlabel(f"forward passes ({probes} a step)")
    settings = history.settings
    figure.suptitle(
        f"{history.steps} steps, batch {settings.batch_size}, lr {settings.lr:g}, "
        f"eps {settings.resolved_eps:g}, seed {settings.seed}",
        fontsize="medium",
    )
    _save(figure, file)


def draw_runs(runs: Mapping[str, Path], file: Path) -> None:
    """Draw the held-out evaluations of several run folders, by name, into one PNG.

    Raises:
        JournalError: a run is damaged or missing.
        SeedtuneError: the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, run in runs.items():
        journal = read_journal(run)
        history = history_of(journal)
        at = [item.step * forwards_a_step(history.settings) for item in history.evaluations]
        upper.plot(at, [item.loss for item in history.evaluations], "o-", label=name)
        lower.plot(at, [item.metric for item in history.evaluations], "o-", label=name)
        lower.set_ylabel(f"{journal.header.metric['name']} on held-out rows")
    upper.set_ylabel("loss on held-out rows")
    upper.legend()
    lower.set_xlabel("forward passes of a batch")
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise SeedtuneError(f"{file}: cannot be written: {error.strerror or error}") from error


def _mark_best(history: History, probes: int, axes: object) -> None:
    best = history.best
    if best is not None:
        axes.plot(  # type: ignore[attr-defined]
            [best.step * probes],
            [best.metric],
            "*C3",
            markersize=14,
            label=f"best {best.metric:.4g}",
        )
        axes.legend()  # type: ignore[attr-defined]


def _smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Exponential moving average without the pull towards its first value."""
    total = weight = 0.0
    smooth = []
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smooth.append(total / weight)
    return np.array(smooth)

"""One PNG of several runs, for a reader who knows none of this project's words."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file

from .run_curves import Curves, measure_words, run_curves


def draw_runs(runs: Mapping[str, Path], file: Path) -> None:
    """Draw the held-out evaluations of several run folders, by name, into one PNG.

    Raises:
        JournalError: a run is damaged or missing.
        SeedtuneError: the picture cannot be written.
    """
    figure, upper, lower = _figure()
    found = None
    for name, run in runs.items():
        found = run_curves(run)
        at = [each.forwards for each in found.evaluated]
        upper.plot(at, [each.loss for each in found.evaluated], "o-", label=name)
        lower.plot(at, [each.metric for each in found.evaluated], "o-", label=name)
    _name_lines(upper)
    if found is not None:
        _name_axes(found, upper, lower)
    figure.suptitle("What the model learns, on rows that it does not learn from", fontsize="large")
    _save(figure, file)


def _figure() -> tuple[Any, Any, Any]:
    """Without pyplot, so that no global state and no display are touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, *figure.subplots(2, 1, sharex=True)


def _name_axes(found: Curves, upper: Any, lower: Any) -> None:
    upper.set_title("How surprised the model is by the right answers (loss): lower is better",
                    fontsize="medium", loc="left", pad=24)  # fmt: skip
    upper.set_ylabel("loss")
    title, axis = measure_words(found.metric, found.higher_is_better)
    lower.set_title(title, fontsize="medium", loc="left")
    lower.set_ylabel(axis)
    if found.metric == "accuracy":
        lower.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    lower.set_xlabel("times that the model has read a batch of rows (forward passes)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)


def _name_lines(axes: Any) -> None:
    """Above the lines, below the title, so that no name covers a curve."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize="small")


def _save(figure: Any, file: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    try:
        replace_file(file, picture.getvalue())
    except OSError as error:
        raise SeedtuneError(f"{file}: cannot be written: {error.strerror or error}") from error

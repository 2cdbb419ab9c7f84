"""One picture of two runs, for a reader who knows none of this project's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file

from .run_curves import ACROSS, LOSS_TITLE, Point, metric_title, run_curves
from .svg_chart import Line, chart, picture

_COLOURS = ("#1f77b4", "#d9730d")


def draw_runs(runs: Mapping[str, Path], file: Path) -> None:
    """Draw the held-out evaluations of two run folders, by name, into one SVG.

    Raises:
        JournalError: a run is damaged or missing.
        SeedtuneError: the picture cannot be written.
    """
    found = {name: run_curves(run) for name, run in runs.items()}
    one = next(iter(found.values()))

    def drawn(value: Callable[[Point], float], said: Callable[[float], str]) -> str:
        lines = [
            Line(name, [(each.forwards, value(each)) for each in curves.evaluated], colour)
            for (name, curves), colour in zip(found.items(), _COLOURS, strict=True)
        ]
        return chart(lines, ACROSS, said)

    text = picture(
        {
            LOSS_TITLE: drawn(lambda each: each.loss, lambda value: f"{value:.3g}"),
            metric_title(one.metric, one.higher_is_better): drawn(
                lambda each: each.metric, one.said
            ),
        }
    )
    try:
        replace_file(file, text.encode())
    except OSError as error:
        raise SeedtuneError(f"{file}: cannot be written: {error.strerror or error}") from error

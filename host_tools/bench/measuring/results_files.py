"""Committed figures: one JSON a benchmark, with the machine that they were measured on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file

from ...this_machine import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "results"


def say(line: str) -> None:
    """Progress of a long benchmark, for whoever waits: standard output is for the figures."""
    print(line, file=sys.stderr, flush=True)


def write_figures(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any]:
    """Write ``NAME.json`` into ``folder`` and return its content: ``figures`` and the machine.

    A kill in the midst leaves the file as it was.

    Raises:
        SeedtuneError: the folder cannot be written.
    """
    content = {"machine": machine(), **figures}
    file = folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise SeedtuneError(f"{file}: cannot be written: {error.strerror or error}") from error
    return content


def read_figures(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """What ``write_figures`` wrote into ``NAME.json``; None where there is no file.

    Raises:
        SeedtuneError: the file holds something else.
    """
    file = folder / f"{name}.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SeedtuneError(f"{file}: holds no figures ({error!r})") from error
    if not isinstance(found, dict):
        raise SeedtuneError(f"{file}: holds no figures (a JSON object is wanted)")
    return found


def draw_curves(
    title: str, curves: dict[str, list[dict[str, Any]]], name: str, folder: Path = RESULTS
) -> None:
    """Held-out loss and accuracy over forward passes, one line a run, as ``NAME.png``.

    Args:
        curves: label to ``[{"forwards", "loss", "accuracy"}, ...]`` (see ``tuning_run.learn``).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for label, curve in curves.items():
        at = [point["forwards"] for point in curve]
        upper.plot(at, [point["loss"] for point in curve], "o-", label=label, markersize=4)
        accuracy = [100 * point["accuracy"] for point in curve]
        lower.plot(at, accuracy, "o-", label=label, markersize=4)
    upper.set_ylabel("loss, held out")
    lower.set_ylabel("accuracy, held out (%)")
    lower.set_xlabel("forward passes")
    upper.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", format="png", dpi=100)
    except OSError as error:
        raise SeedtuneError(f"{folder}: cannot be written: {error.strerror or error}") from error

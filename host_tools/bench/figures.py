"""Committed figures: one JSON a benchmark, with the machine that they were measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"

_LIBRARIES = ("numpy", "torch", "torchao", "executorch", "transformers")


def say(line: str) -> None:
    """Progress of a long benchmark, for whoever waits: standard output is for the figures."""
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, system and library versions."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


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


def draw_curves(
    title: str, curves: dict[str, list[dict[str, Any]]], name: str, folder: Path = RESULTS
) -> None:
    """Held-out loss and accuracy over forward passes, one line a run, as ``NAME.png``.

    Args:
        curves: label to ``[{"forwards", "loss", "accuracy"}, ...]`` (see ``learning.learn``).
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


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0

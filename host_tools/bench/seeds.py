"""``seedtune bench seeds``: the quickstart's tuning over several seeds, and a longer run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.files import default_cache
from seedtune.runtime.settings import Settings

from ..data.fetch import fetch
from ..data.named_tasks import TaskData, load_task
from ..prepare.prepare import prepare
from ..prepare.task_bundle import task_bundle
from ..quickstart import DEFAULT_STEPS, DEFAULT_TASK, MODEL, RUNS
from .measuring.results_files import RESULTS, draw_curves, say, write_figures
from .measuring.tuning_run import Progress, learn, mean_and_deviation


def bench_seeds(
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = DEFAULT_STEPS,
    long_steps: int = 480,
    bundle: Bundle | Path | None = None,
    data: TaskData | None = None,
    threads: int | None = None,
    runs: Path | None = None,
    results: Path = RESULTS,
    progress: Progress = say,
) -> dict[str, Any]:
    """Tune with the quickstart's settings and every seed; figures are written after each run.

    An interrupted benchmark goes on where its runs' journals end.

    Args:
        long_steps: of the longer run with the first seed; 0 leaves it out.
        bundle: by default the one of the quickstart, prepared if need be.

    Returns:
        ``runs`` by seed (see ``tuning_run.learn``), ``summary`` over seeds, and ``long_run``.
    """
    if bundle is None:
        folder = default_cache() / "prepared" / f"task-{DEFAULT_TASK}"
        exported = prepare(str(fetch(MODEL))).bundle
        bundle = task_bundle(exported, load_task(DEFAULT_TASK).spec, folder)
    elif isinstance(bundle, Path):
        bundle = open_bundle(bundle)
    data = data or load_task(DEFAULT_TASK)
    found: dict[str, Any] = {"task": data.name, "steps": steps, "runs": {}}

    def run(seed: int, count: int, evaluations: int) -> dict[str, Any]:
        every = max(1, count // evaluations)
        chosen = RUNS["readout"] | {"seed": seed, "steps": count, "eval_every": every}
        settings = Settings(**chosen)
        return learn(bundle, data, settings, threads=threads, runs=runs, progress=progress)

    for seed in seeds:
        found["runs"][str(seed)] = run(seed, steps, 4)
        found["summary"] = summarise(found["runs"])
        written = write_figures("seeds", found, results)
        curves = {f"seed {name}": taken["curve"] for name, taken in found["runs"].items()}
        draw_curves(f"{data.name}, {steps} steps, by seed", curves, "seeds", results)
    if long_steps:
        found["long_run"] = run(seeds[0], long_steps, 8)
        written = write_figures("seeds", found, results)
        title = f"{data.name}, {long_steps} steps, seed {seeds[0]}"
        draw_curves(title, {"longer run": found["long_run"]["curve"]}, "long_run", results)
    return written


def summarise(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over runs of what the tuner started from, ships, and gained."""
    summary = {
        f"{figure}_{when}": mean_and_deviation([run[when][figure] for run in runs.values()])
        for figure in ("accuracy", "loss")
        for when in ("before", "after")
    }
    gains = [run["after"]["accuracy"] - run["before"]["accuracy"] for run in runs.values()]
    return {"seeds": len(runs), **summary, "accuracy_gain": mean_and_deviation(gains)}

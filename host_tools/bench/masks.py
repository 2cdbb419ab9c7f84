"""``seedtune bench masks``: the sensitive 0.1 % against a random 0.1 % at equal forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.named_tasks import load_task
from ..prepare.prepare import Prepared
from ..quickstart import DEFAULT_TASK
from .measuring.results_files import RESULTS, draw_curves, say, write_figures
from .measuring.tuning_run import Progress, learn
from .programs.variants import quickstart_program, variant

LR = 1e-4
"""Of the sensitive mask; twice as much learned less."""


def bench_masks(
    *,
    steps: int = 150,
    evaluations: int = 3,
    test_rows: int = 300,
    factors: tuple[float, ...] = (1.0, 10.0),
    base: Prepared | None = None,
    threads: int | None = None,
    runs: Path | None = None,
    results: Path = RESULTS,
    progress: Progress = say,
) -> dict[str, Any]:
    """Same seed, data order, eps and recipe; the random mask also at larger learning rates.

    A random entry's gradient is smaller than a sensitive one's, so that the learning rate chosen
    for the latter could be unfair to it.

    Args:
        factors: learning rates to try with the random mask, in that of the mask.

    Returns:
        ``runs`` by label (see ``tuning_run.learn``).
    """
    base = base or quickstart_program()
    data = load_task(DEFAULT_TASK)
    found: dict[str, Any] = {"task": data.name, "steps": steps, "runs": {}}
    written = found

    def run(label: str, prepared: Prepared, factor: float) -> None:
        nonlocal written
        settings = {
            "steps": steps,
            "estimator": "two-point",
            "eval_every": max(1, steps // evaluations),
            "lr": LR * factor,
            "eps": 1e-2,
            "schedule": "linear",
        }
        taken = learn(
            prepared.bundle,
            data,
            settings,
            test_rows=test_rows,
            threads=threads,
            runs=runs,
            progress=progress,
        )
        found["runs"][label] = taken
        written = write_figures("masks", found, results)
        curves = {name: one["curve"] for name, one in found["runs"].items()}
        draw_curves(f"{data.name}, 0.1 % of the weights tuned", curves, "masks", results)

    run("sensitive", base, 1.0)
    random = variant("random-mask", base, mask="random")
    for factor in factors:
        run("random" if factor == 1.0 else f"random, {factor:g} x lr", random, factor)
    return written

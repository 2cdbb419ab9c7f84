"""The quickstart: a real model and real data, from download to accuracy before and after.

Downloads SmolLM2-135M and labelled sentences, profiles and exports in a child process, then tunes
and evaluates in this one with what a device would have: numpy, the tokenizer and the engine.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedtune.runtime.bundle import Bundle
from seedtune.runtime.bundle.exported_values import export_values
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.system_memory import peak_resident_bytes
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.evaluation import evaluate
from seedtune.runtime.settings import Settings
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning.tuner import Tuner

from .commands.follow import follow
from .data.fetch import fetch
from .data.named_tasks import load_task
from .prepare.prepare import prepare
from .prepare.task_bundle import task_bundle
from .reports.plot_run import draw_run

if TYPE_CHECKING:
    from .commands.output import Output

MODEL = "smollm2-135m"
DEFAULT_TASK = "sst2"
DEFAULT_STEPS = 120
SETTINGS: dict[str, Any] = {"estimator": "readout", "lr": "auto"}
"""Nothing to choose by hand: 120 steps of one forward each."""
EVAL_EVERY = 30
"""Steps, however many the run has: a run that a second call makes longer must keep it."""
WATCHED = 300
"""Held-out examples, evenly spaced, that the run is watched on and its best step chosen by."""


def run_quickstart(
    *,
    folder: Path,
    seed: int,
    threads: int | None,
    output: Output,
    task: str = DEFAULT_TASK,
    steps: int = DEFAULT_STEPS,
) -> dict[str, Any]:
    """Run all of it in ``folder`` and return the figures; a second call resumes what is there.

    Losses and accuracies in the result are of all held-out rows.

    Raises:
        SeedtuneError: as fetching, exporting and tuning raise them.
    """
    began = time.monotonic()
    output.note(f"fetching the rows of {task}")
    data = load_task(task)
    with output.counting(f"fetching {MODEL}", size=True) as progress:
        model = str(fetch(MODEL, progress))
    output.note("profiling and exporting (a few minutes; kept for the next time)")
    with output.stages() as stages:
        prepared = prepare(model, folder / "model", progress=stages)
    bundle = task_bundle(model, prepared.bundle, data.spec, folder / task, directions=0)
    output.note(
        f"profile {prepared.profile_seconds:.0f} s, export {prepared.export_seconds:.0f} s, "
        f"{bundle.K} sensitive values" + (", from last time" if prepared.reused else "")
    )
    the_task = task_for(bundle, data.spec, on_long="truncate")
    train, test = (encode_rows(the_task, rows) for rows in (data.train, data.test))
    count = min(WATCHED, len(test))
    watched = [test[number * len(test) // count] for number in range(count)]
    # By bundle: a run belongs to the one it began with, and an export may have changed since.
    run = folder / f"run-{task}-{seed}-{bundle.sha256[:8]}"
    settings = Settings(seed=seed, steps=steps, eval_every=EVAL_EVERY, **SETTINGS)
    with (
        open_engine(bundle, threads or "auto") as engine,
        Tuner(
            engine,
            Start.of(bundle),
            the_task,
            train,
            folder=run,
            settings=settings,
            eval_examples=watched,
        ) as tuner,
    ):
        follow(tuner, output, metric=the_task.metric_name, held_out=count)
        tuned = tuner.tuned()
        done, forwards = tuner.history.steps, tuner.forwards
        output.note(tuned.message)
        output.note(
            f"evaluating the start and step {tuned.step} on all {len(test)} held-out examples"
        )
        before, after = (
            evaluate(engine, the_task, test, values, bundle.bounds)
            for values in (bundle.values, tuned.values)
        )
    export_values(run / "values.safetensors", tuned.values, bundle, step=tuned.step)
    # Before matplotlib is loaded.
    peak = peak_resident_bytes()
    draw_run(run, run / "plot.png")
    result = {
        "task": task,
        "accuracy_before": before.metric,
        "accuracy_after": after.metric,
        "loss_before": before.loss,
        "loss_after": after.loss,
        "steps": done,
        "forwards": forwards,
        "profile_seconds": prepared.profile_seconds,
        "export_seconds": prepared.export_seconds,
        "peak_rss_bytes": peak,
        "bundle_bytes": bundle_bytes(bundle),
        "run": str(run),
        "plot": str(run / "plot.png"),
    }
    result["seconds"] = time.monotonic() - began
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def bundle_bytes(bundle: Bundle) -> int:
    """Size of the bundle's parts on disk."""
    return sum(part["bytes"] for part in bundle.manifest["parts"].values())

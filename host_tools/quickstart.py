"""The quickstart: a real model and real data, from download to accuracy before and after.

Downloads SmolLM2-135M and labelled sentences, profiles and exports in a child process, then tunes
and evaluates in this one with what a device would have: numpy, the tokenizer and the engine.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedtune.runtime.engines.memory import peak_resident_bytes
from seedtune.runtime.journal.run_folder import VALUES_FILE
from seedtune.runtime.model import open_model
from seedtune.runtime.scoring.evaluation import evaluate
from seedtune.runtime.scoring.known_forwards import KnownForwards

from .commands.follow import Follower
from .data.fetch import fetch
from .data.named_tasks import load_task, split
from .prepare import Prepared, prepare
from .reports.svg_chart import draw_runs

if TYPE_CHECKING:
    from .commands.output import Output

MODEL = "smollm2-135m"
RUNS: dict[str, dict[str, Any]] = {
    "readout": {"estimator": "readout", "eval_every": 30},
    "sparse": {"estimator": "per-example", "eval_every": 50},
}
"""Two ways to learn from the same rows, nothing to choose by hand: hidden states, 120 steps of one
forward each, and the paper's sensitive values along seeded noise, 100 steps of two, which
are judged less often, since states of the held-back rows do not serve twice there. ``eval_every``
is the same however many steps a run has: a second call that makes it longer must keep it."""
WRITTEN = 0
"""Tokens that the bundle can write: it sorts sentences, and a program that writes, too, takes about
twice as long to lower. The profile serves both, so that an export that writes is the rest alone."""
WATCHED = 300
"""Training sentences that are held back: they choose the best step and which of the two runs ships.
The test sentences choose nothing."""


def run_quickstart(
    *,
    task: str,
    steps: int,
    folder: Path,
    seed: int,
    threads: int | None,
    output: Output,
) -> dict[str, Any]:
    """Run all of it in ``folder`` and return the figures; a second call resumes what is there.

    Losses and accuracies in the result are of the task's test rows, which choose nothing: the best
    step, and which run ships, are chosen by rows held back from training.

    Raises:
        SeedtuneError: as fetching, exporting and tuning raise them.
    """
    began = time.monotonic()
    output.note(f"fetching the rows of {task}")
    data = load_task(task)
    _, prepared = prepare_model(output, folder / "model", WRITTEN)
    bundle = prepared.bundle
    output.note(
        f"profile {prepared.profile_seconds:.0f} s, export {prepared.export_seconds:.0f} s, "
        f"{bundle.K} sensitive values" + (", from last time" if prepared.reused else "")
    )
    # By bundle: a run belongs to the one it began with, and an export may have changed since.
    name = f"run-{task}-{seed}-{bundle.sha256[:8]}"
    lengths = {"readout": steps, "sparse": max(1, steps - steps // 6)}
    found: dict[str, Any] = {}
    with open_model(bundle, task=data.spec, on_long="truncate", threads=threads or "auto") as model:
        held_back = min(WATCHED, len(data.train) // 10)
        taught, chosen_by = split(data.train, held_back, list(model.task.template.names))
        train, watched, test = (model.encode(rows) for rows in (taught, chosen_by, data.test))
        for run, chosen in RUNS.items():
            output.note(f"tuning: {run}")
            settings = {"seed": seed, "steps": lengths[run], **chosen}
            follower = Follower(output)
            with model.tuner(
                folder / f"{name}-{run}",
                train,
                watched,
                on_evaluation=follower.evaluating,
                **settings,
            ) as tuner:
                follower.run(tuner, metric=model.task.metric_name, held_out=len(watched))
                tuned, forwards = tuner.tuned(), tuner.forwards
                output.note(tuned.message)
            found[run] = tuned, forwards
        judged, engine = {}, model.engine
        known = KnownForwards(engine) if engine.hidden_width else None
        values = {
            "before": model.values,
            **{run: tuned.values for run, (tuned, _) in found.items()},
        }
        for run, of_run in values.items():
            what = "start" if run == "before" else run
            with output.counting(f"judging on the {len(test)} test rows: {what}") as progress:
                judged[run] = evaluate(
                    engine, model.task, test, of_run, bundle.bounds, progress, known=known
                )
        ships = max(found, key=lambda run: (found[run][0].metric, -found[run][0].loss))
        tuned, forwards = found[ships]
        shipped = folder / f"{name}-{ships}"
        model.load(tuned)
        model.save(shipped / VALUES_FILE)
    picture = folder / "quickstart.svg"
    draw_runs({run: folder / f"{name}-{run}" for run in found}, picture)
    result = {
        "task": task,
        "ships": ships,
        "accuracy_before": judged["before"].metric,
        "accuracy_after": judged[ships].metric,
        "test_rows": len(test),
        "loss_before": judged["before"].loss,
        "loss_after": judged[ships].loss,
        "forwards": forwards,
        **{f"accuracy_after_{run}": judged[run].metric for run in found},
        **{f"loss_after_{run}": judged[run].loss for run in found},
        **{f"forwards_{run}": found[run][1] for run in found},
        "profile_seconds": prepared.profile_seconds,
        "export_seconds": prepared.export_seconds,
        "peak_rss_bytes": peak_resident_bytes(),
        "bundle_bytes": sum(part["bytes"] for part in bundle.manifest["parts"].values()),
        "bundle": str(bundle.path),
        "run": str(shipped),
        "plot": str(picture),
    }
    result["seconds"] = time.monotonic() - began
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def prepare_model(
    output: Output, folder: Path | None = None, context: int | None = None
) -> tuple[str, Prepared]:
    """The quickstart's model, fetched, and its bundle in ``folder`` or the cache.

    Args:
        context: see ``prepare``.
    """
    with output.counting(f"fetching {MODEL}", size=True) as progress:
        model = str(fetch(MODEL, progress))
    output.note("profiling and exporting (a few minutes; kept for the next time)")
    with output.stages() as stages:
        return model, prepare(model, folder, context=context, progress=stages)

"""The method itself: the sensitive values of the exported int4 program, through its engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.system_memory import peak_resident_bytes
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Batch

from ...data.calibration import load_calibration
from ...data.named_tasks import TaskData
from ..measuring.perplexity import perplexity
from ..measuring.tuning_run import Progress, described, encode, tune
from .settings import tuner_settings


def run(
    data: TaskData, settings: dict[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Run, or go on with, the tuner.

    Returns:
        As ``tuning_run.tune``, and ``metric``; of a completion task also ``generic_perplexity``,
        of text that has nothing to do with the task, ``before`` and ``after`` the last step.
    """
    bundle = open_bundle(settings["bundle"])
    bounds = replace(bundle.bounds, length=min(settings["length"], bundle.bounds.length))
    task, train, test = encode(
        data, bundle.tokenizer(), bounds, bundle.pad_id, settings["test_rows"]
    )
    engine, start = open_engine(bundle, settings["threads"] or "auto"), Start.of(bundle)
    run_folder = folder / "run"
    found = tune(engine, start, task, train, test, tuner_settings(settings), run_folder, progress)
    found |= described(bundle)
    found |= {"metric": task.metric_name, "peak_rss_bytes": peak_resident_bytes()}
    if task.metric_name == "perplexity":
        # The host's tokenizer comes with the float model; its memory is not the method's.
        from seedtune.export.model.load_model import load_causal_lm

        text = load_calibration(load_causal_lm(settings["source"]).tokenizer).held_out
        last = replay(run_folder, start).values

        def score(values: Values, batch: Batch, _: NDArray[np.float32]) -> NDArray[np.float32]:
            return values.score(engine, batch)

        found["generic_perplexity"] = {
            when: perplexity(partial(score, values), text, values.sensitive[None], bundle.bounds)
            for when, values in (("before", Values(start.values)), ("after", last))
        }
    engine.close()
    return found

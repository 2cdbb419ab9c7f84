"""``seedtune bench device``: what tuning costs on a device, beside MeZO and LoRA in float32.

Times come from one process in turns, peaks from a process each (``contenders.device_process``), all
on SmolLM2, one batch size and one CPU. Linux only. The timed batch is of random tokens, all rows
equally long, one answer position and two candidates a row, as a classification task has it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.estimators import make_estimator, settings_of
from seedtune.runtime.estimators.estimator import StepContext
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Encoded, task_for

from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..quickstart import MODEL
from .contenders import device_process as process
from .contenders import lora, mezo
from .measuring.default_bundle import default_bundle
from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .measuring.runs import in_turns

Step = Callable[[], object]
_CORES = len(os.sched_getaffinity(0))
"""Threads of all, as torch takes them."""
_SPEC = {
    "kind": "classification",
    "template": "{text}\n",
    "label_field": "label",
    "verbalisers": {"0": "no", "1": "yes"},
}
ROWS, LENGTH = 16, 64
"""Sizes of the batches that peaks are taken at."""
SHORT = 32
"""Tokens of the rows that steps are timed at first: SST-2's sentences are about as long."""
STEPS = 3
"""Steps of each measured process: the peak is reached in the second, when all buffers exist."""


def bench_device(*, turns: int = 5, results: Path = RESULTS) -> dict[str, Any]:
    """Figures for the README's table, also written to ``device.json`` in ``results``.

    Returns:
        ``peak_rss_bytes`` and ``program_bytes``, ``over_program_bytes`` (their difference),
        ``mezo_peak_rss_bytes``, ``lora_peak_rss_bytes`` with the ratios ``peak_over_mezo`` and
        ``peak_over_lora``; and those of ``step_figures`` for short rows, and again for rows of
        ``LENGTH`` tokens.
    """
    model, bundle = str(fetch(MODEL)), open_bundle(default_bundle(MODEL))
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.json"
        data = load_task("sst2")
        # Sentences joined to reach the batch's length: SST-2's own are shorter.
        joined = [
            {**row, "text": " ".join(each["text"] for each in data.train[first : first + 8])}
            for first, row in enumerate(data.train[: 4 * ROWS])
        ]
        task.write_text(json.dumps({"spec": data.spec, "rows": joined}), encoding="utf-8")

        def measured(what: str, path: Path | str) -> dict[str, Any]:
            say(f"measuring a process: {what}")
            return run_module(process.__name__, what, path, ROWS, LENGTH, STEPS, task)

        ours = measured("tune", bundle.path)
        its_mezo, its_lora = measured("mezo", model), measured("lora", model)
    say("timing in turns")
    times = step_figures(model, bundle, turns, ROWS, SHORT)
    at_length = step_figures(model, bundle, turns, ROWS, LENGTH)
    program = bundle.program_path.stat().st_size
    if ours["torch"] or ours["longest_row"] != LENGTH:
        raise SeedtuneError(f"bench device: the measured process was another than meant: {ours}")
    peak = ours["peak_rss_bytes"]
    figures = {
        "model": "smollm2-135m",
        "peak_rss_bytes": peak,
        "program_bytes": program,
        "over_program_bytes": peak - program,
        "mezo_peak_rss_bytes": its_mezo["peak_rss_bytes"],
        "lora_peak_rss_bytes": its_lora["peak_rss_bytes"],
        "peak_over_mezo": peak / its_mezo["peak_rss_bytes"],
        "peak_over_lora": peak / its_lora["peak_rss_bytes"],
        **times,
        f"at_{LENGTH}_tokens": at_length,
    }
    return write_figures("device", figures, results)


def step_figures(model: str, bundle: Bundle, turns: int, rows: int, length: int) -> dict[str, Any]:
    """Seconds and ratios, medians over ``turns``.

    Returns:
        ``step_seconds``, ``mezo_fp32_step_seconds``, ``lora_fp32_step_seconds``, and
        ``mezo_fp32_over_step``, ``lora_over_step``.
    """
    size = (rows, length)
    runs: dict[str, Step] = {
        "step": two_point_step(bundle, *size),
        "mezo": mezo.timed_step(model, *size),
        "lora": lora.timed_step(model, *size),
    }
    seconds, over_step = in_turns(runs, turns)
    return {
        "batch": list(size),
        "step_seconds": seconds["step"],
        "mezo_fp32_step_seconds": seconds["mezo"],
        "lora_fp32_step_seconds": seconds["lora"],
        "mezo_fp32_over_step": over_step["mezo"],
        "lora_over_step": over_step["lora"],
    }


def two_point_step(bundle: Bundle, rows: int, length: int) -> Step:
    """A two-point step as the loop does it: perturb, both losses, update."""
    last, candidates = np.array([[0, length - 1]]), np.array([[1, 2]])
    tokens = np.random.default_rng(0).integers(0, bundle.vocab_size, (rows, length))
    examples = [Encoded(row[None], last, candidates, gold=0) for row in tokens]
    engine, task = open_engine(bundle, _CORES), task_for(bundle, _SPEC)
    look = Look(engine, task, bundle.bounds, examples)
    estimator = make_estimator(settings_of({"estimator": "two-point"}))
    values = Values(bundle.values.astype(np.float32))
    at = StepContext(seed=0, step=0, eps=1e-2, lr=1e-9)

    def step() -> None:
        _, scalars = estimator.measure(look, values, at)
        estimator.apply(values, scalars, at)

    return step

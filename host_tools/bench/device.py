"""``seedtune bench device``: what tuning costs on a device, beside MeZO and LoRA in float32.

Times come from one process in turns, peaks from a process each (``contenders.device_process``), all
on SmolLM2, one batch size and one CPU. Linux only.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError

from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..prepare.prepare import Prepared, prepare
from .contenders import device_process as process
from .contenders import lora, mezo
from .contenders.steps import Step, two_point_step
from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .measuring.timing import in_turns

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
    model = str(fetch("smollm2-135m"))
    say("preparing the model")
    prepared = prepare(model)
    bundle = prepared.bundle.path
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

        ours = measured("tune", bundle)
        its_mezo, its_lora = measured("mezo", model), measured("lora", model)
    say("timing in turns")
    times = step_figures(model, prepared, turns, ROWS, SHORT)
    at_length = step_figures(model, prepared, turns, ROWS, LENGTH)
    program = prepared.bundle.program_path.stat().st_size
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


def step_figures(
    model: str, prepared: Prepared, turns: int, rows: int, length: int
) -> dict[str, Any]:
    """Seconds and ratios, medians over ``turns``.

    Returns:
        ``step_seconds``, ``mezo_fp32_step_seconds``, ``lora_fp32_step_seconds``, and
        ``mezo_fp32_over_step``, ``lora_over_step``.
    """
    size = (rows, length)
    runs: dict[str, Step] = {
        "step": two_point_step(prepared.bundle, *size),
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

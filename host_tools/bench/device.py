"""``seedtune bench device``: what tuning costs on a device, beside MeZO and LoRA in float32.

Times come from one process in turns, peaks from a process each (see ``processes.device``), all on
SmolLM2, one batch size and one CPU. Linux only.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError

from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..prepare.prepare import prepare
from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .processes import device as process
from .step import step_figures

ROWS, LENGTH = 16, 64
"""Of the batches that peaks are taken at."""
SHORT = 32
"""Tokens of the rows that steps are timed at first: SST-2's sentences are about as long."""
STEPS = 3
"""Of each measured process: the peak is reached in the second, when all buffers exist."""
STARTS = 5


def bench_device(*, turns: int = 5, results: Path = RESULTS) -> dict[str, Any]:
    """Figures for the README's table, also written to ``device.json`` in ``results``.

    Returns:
        ``peak_rss_bytes`` and ``program_bytes``, ``over_program_bytes`` (their difference),
        ``binding_peak_rss_bytes``, ``mezo_peak_rss_bytes``, ``lora_peak_rss_bytes`` with the ratios
        ``peak_over_mezo`` and ``peak_over_lora``; ``start_seconds`` (process start to the first
        step, file cache warm, least of some starts) and ``first_step_seconds`` (to its end); and
        those of ``step.step_figures`` for short rows, and again for rows of ``LENGTH`` tokens.
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

        def measured(what: str, path: Path | str, steps: int = STEPS) -> dict[str, Any]:
            say(f"measuring a process: {what}")
            return run_module(process.__name__, what, path, ROWS, LENGTH, steps, task)

        ours = measured("tune", bundle)
        starts = [measured("tune", bundle, 1) for _ in range(STARTS)]
        binding = measured("tune-binding", bundle)
        mezo, lora = measured("mezo", model), measured("lora", model)
    say("timing in turns")
    times = step_figures(model, prepared, turns, ROWS, SHORT)
    at_length = step_figures(model, prepared, turns, ROWS, LENGTH)
    program = prepared.bundle.program_path.stat().st_size
    if ours["torch"] or ours["longest_row"] != LENGTH:
        raise SeedtuneError(f"bench device: the measured process was another than meant: {ours}")
    return write_figures(
        "device",
        {
            "model": "smollm2-135m",
            "peak_rss_bytes": ours["peak_rss_bytes"],
            "program_bytes": program,
            "over_program_bytes": ours["peak_rss_bytes"] - program,
            "binding_peak_rss_bytes": binding["peak_rss_bytes"],
            "mezo_peak_rss_bytes": mezo["peak_rss_bytes"],
            "lora_peak_rss_bytes": lora["peak_rss_bytes"],
            "peak_over_mezo": ours["peak_rss_bytes"] / mezo["peak_rss_bytes"],
            "peak_over_lora": ours["peak_rss_bytes"] / lora["peak_rss_bytes"],
            "start_seconds": min(each["ready_seconds"] for each in starts),
            "first_step_seconds": min(each["first_step_seconds"] for each in starts),
            **times,
            f"at_{LENGTH}_tokens": at_length,
        },
        results,
    )

"""One measured process of ``bench device``: peak memory belongs to whole processes.

``python -m seedtune.host_tools.bench.contenders.device_process WHAT PATH ROWS LENGTH STEPS TASK``
does STEPS steps and prints one JSON object. WHAT is ``tune`` (PATH a bundle: the real loop on the
rows of the file TASK, in a run folder of its own), ``mezo`` or ``lora`` (PATH a model).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(what: str, path: str, rows: int, length: int, steps: int, task: str) -> dict[str, Any]:
    """``peak_rss_bytes``, whether ``torch`` came in and, of the loop, ``longest_row``."""
    from seedtune.runtime.engines.memory import peak_resident_bytes

    found: dict[str, Any] = {}
    if what == "tune":
        found = _tune(path, rows, length, steps, task)
    else:
        from . import lora, mezo

        step = {"mezo": mezo, "lora": lora}[what].timed_step(path, rows, length)
        for _ in range(steps):
            step()
    return {**found, "torch": "torch" in sys.modules, "peak_rss_bytes": peak_resident_bytes()}


def _tune(path: str, rows: int, length: int, steps: int, task_file: str) -> dict[str, Any]:
    from dataclasses import replace

    from seedtune.runtime.bundle import open_bundle
    from seedtune.runtime.engines import open_engine
    from seedtune.runtime.journal.start import Start
    from seedtune.runtime.tasks import encode_rows, task_for
    from seedtune.runtime.tuning.tuner import Tuner

    bundle = open_bundle(path)
    content = json.loads(Path(task_file).read_text(encoding="utf-8"))
    bounds = replace(bundle.bounds, length=min(length, bundle.bounds.length))
    task = task_for(bundle, content["spec"], bounds=bounds, on_long="truncate")
    train = encode_rows(task, content["rows"])
    # Of all cores, as torch takes them.
    engine = open_engine(bundle, len(os.sched_getaffinity(0)))
    settings = {
        "steps": steps,
        "batch_size": rows,
        "estimator": "two-point",
        "eps": 1e-2,
        "lr": 1e-5,
        "eval_every": 0,
    }
    with (
        engine,
        tempfile.TemporaryDirectory() as folder,
        Tuner(engine, Start.of(bundle), task, train, folder=folder, settings=settings) as tuner,
    ):
        for _ in tuner:
            pass
    return {"longest_row": max(example.length for example in train)}


if __name__ == "__main__":
    what, path, *sizes, task = sys.argv[1:]
    rows, length, steps = map(int, sizes)
    print(json.dumps(main(what, path, rows, length, steps, task)))

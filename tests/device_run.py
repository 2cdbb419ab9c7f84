"""What a device does, as a script: tune and replay with the runtime alone.

``python device_run.py tune BUNDLE RUN STEPS [ENGINE]`` or ``replay BUNDLE RUN``; prints one JSON
object.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning.tuner import Tuner

TASK = {"kind": "completion", "template": "{prompt}", "completion_field": "completion"}
PROMPTS = ("The cat sat", "A film about", "It was", "Yes or", "Numbers such as")
ANSWERS = (" good", " bad", " the rain", " great")


def tune(
    bundle: Bundle, folder: Path, steps: int, engine_name: str | None = None
) -> dict[str, Any]:
    task = task_for(bundle, TASK)
    rows = [{"prompt": prompt, "completion": word} for prompt in PROMPTS for word in ANSWERS]
    examples = encode_rows(task, rows)
    engine = open_engine(bundle, 1, name=engine_name)
    settings = {
        "steps": steps,
        "batch_size": 4,
        "lr": 1e-4,
        "eps": 1e-2,
        "eval_every": 0,
        "estimator": "two-point",
    }
    arguments = (engine, Start.of(bundle), task, examples)
    with Tuner(*arguments, folder=folder, settings=settings) as tuner:
        first = None
        for report in tuner:
            first = report.step if first is None else first
        return {"sha256": tuner.values.sha256, "first_step": first}


def main() -> None:
    command, path, target, *rest = sys.argv[1:]
    bundle = open_bundle(Path(path))
    told: dict[str, Any]
    if command == "tune":
        told = tune(bundle, Path(target), int(rest[0]), *rest[1:])
    else:
        told = {"sha256": replay(Path(target), Start.of(bundle)).sha256}
    told["machine"] = platform.machine()
    told["torch"] = "torch" in sys.modules
    print(json.dumps(told))


if __name__ == "__main__":
    main()

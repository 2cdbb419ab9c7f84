"""``python -m rehearsal.measure BUNDLE``: steps on Android's library beside the native engine's.

Each engine runs in processes of its own, by turns, so that whatever else the machine does falls on
both. Time is that of the processor as well as the clock's: the first is what a busy machine leaves
alone.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ENGINES = ("executorch-native", "executorch-java")
_TURNS, _STEPS, _ROWS = 3, 3, 16
_WORDS = "A film about rain and a town where nobody laughs, told with humour and much patience by"
_TASK = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"0": " terrible", "1": " great"},
}


def steps(engine: str, bundle: Path) -> dict[str, Any]:
    """Seconds of each step after the first, by the clock and of the processor; peak in bytes."""
    from seedtune.runtime import open_model

    rows = [
        {"text": f"{_WORDS} number {place} of {_ROWS}.", "label": str(place % 2)}
        for place in range(_ROWS)
    ]
    clock, processor = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        open_model(bundle, engine=engine, threads=1, task=_TASK) as model,
        model.tuner(
            Path(folder) / "run",
            rows,
            estimator="two-point",
            steps=_STEPS + 1,
            batch_size=_ROWS,
            lr=1e-4,
            eps=1e-2,
        ) as tuner,
    ):
        began = time.monotonic(), time.process_time()
        for _ in tuner:
            now = time.monotonic(), time.process_time()
            clock.append(now[0] - began[0])
            processor.append(now[1] - began[1])
            began = now
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"clock": clock[1:], "processor": processor[1:], "peak": peak}


def compared(bundle: Path) -> dict[str, dict[str, float]]:
    """Of each engine: median seconds, by both clocks, and the highest peak in bytes."""
    found: dict[str, list[Any]] = {engine: [] for engine in ENGINES}
    for _ in range(_TURNS):
        for engine in ENGINES:
            command = [sys.executable, "-m", __spec__.name, str(bundle), engine]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[engine].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        engine: {
            "clock": statistics.median(second for turn in turns for second in turn["clock"]),
            "processor": statistics.median(
                second for turn in turns for second in turn["processor"]
            ),
            "peak": max(turn["peak"] for turn in turns),
        }
        for engine, turns in found.items()
    }


def main() -> None:
    bundle = Path(sys.argv[1])
    if len(sys.argv) == 2:
        found = compared(bundle)
        for engine, each in found.items():
            print(
                f"{engine:20} {each['clock']:.3f} s, {each['processor']:.3f} s of the processor, "
                f"peak {each['peak'] / 1e6:.0f} MB"
            )
        native, java = (found[engine] for engine in ENGINES)
        for what in ("clock", "processor"):
            print(f"ratio by {what}: {java[what] / native[what]:.3f}")
        return
    if sys.argv[2] == "executorch-native":
        print(json.dumps(steps(sys.argv[2], bundle)))
        return
    from . import jvm

    jvm.start()
    try:
        print(json.dumps(steps(sys.argv[2], bundle)))
    except BaseException:
        import traceback

        traceback.print_exc()
        jvm.leave(1)
    jvm.leave()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

"""Kill and resume real runs of an exported tiny model; ``test_real_kills`` runs this by itself.

In a fresh interpreter, because it forks: a parent that has used a thread pool, as a process full
of tests has, hands its children locks and counts but no threads.
"""

import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

from faults import run_and_kill
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.bundle.exported_values import values_sha256
from seedtune.runtime.engines import open_engine
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start
from seedtune.runtime.settings import Settings
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning.tuner import Tuner

STEPS = 40
SPEC = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"0": " terrible", "1": " great"},
}
ROWS = [
    {"text": f"A film about {word}, told with {manner}.", "label": str(place % 2)}
    for place, (word, manner) in enumerate(
        (word, manner) for word in ("rain", "a cat", "a town") for manner in ("humour", "patience")
    )
]


def run_to_the_end(folder: Path, bundle: Bundle) -> str:
    """The whole life of a process on a device: open everything, resume, finish."""
    task = task_for(bundle, SPEC)
    examples = encode_rows(task, ROWS)
    with Tuner(
        open_engine(bundle, 1),
        Start.of(bundle),
        task,
        examples,
        folder=folder,
        settings=Settings(
            seed=5,
            steps=STEPS,
            batch_size=2,
            lr=1e-3,
            eps=1e-2,
            eval_every=10,
            estimator="two-point",
        ),
        eval_examples=examples,
    ) as tuner:
        for _ in tuner:
            pass
        return values_sha256(tuner.values)


def main(bundle: Bundle, scratch: Path, wanted: int) -> dict[str, int | str]:
    """Kill ``wanted`` times; every run that is then finished must end on the same values."""
    start = Start.of(bundle)
    child = multiprocessing.get_context("fork").Process(
        target=run_to_the_end, args=(scratch / "whole", bundle)
    )
    began = time.monotonic()
    child.start()
    child.join()
    lasted = time.monotonic() - began
    whole = replay(scratch / "whole", start)
    assert whole.history.steps == STEPS
    rng, kills, cycles = random.Random(0), 0, 0
    while kills < wanted:
        folder = scratch / f"run{cycles}"
        while run_and_kill(lambda f=folder: run_to_the_end(f, bundle), rng.random() * lasted):
            kills += 1
        found = replay(folder, start)
        assert found.history.steps == STEPS
        assert found.sha256 == whole.sha256
        cycles += 1
    return {"kills": kills, "cycles": cycles, "sha256": whole.sha256}


if __name__ == "__main__":
    print(json.dumps(main(open_bundle(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))

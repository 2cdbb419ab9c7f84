"""Kill and resume real runs of every estimator; each must end on the values of an undisturbed run.

``python tests/kill_run.py --kills 2000`` exports the tiny model first; ``--bundle`` takes another,
such as SmolLM2's. ``test_real_kills`` runs this by itself: in a fresh interpreter, because it
forks, and a parent that has used a thread pool, as a process full of tests has, hands its children
locks and counts but no threads.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

from exported_bundle import export_tiny_bundle
from faults import run_and_kill
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import SeedtuneWarning
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning.tuner import Tuner
from tiny_bundle import TASK
from tiny_run import rates

WRITING = {"kind": "completion", "template": "{text}", "completion_field": "said"}
ROWS = [
    {
        "text": f"A film about {word}, told with {manner}.",
        "label": str(place % 2),
        "said": f" It was {'great' if place % 2 else 'terrible'}.",
    }
    for place, (word, manner) in enumerate(
        (word, manner)
        for word in ("rain", "a cat", "a town", "the sea", "a mat", "numbers", "good", "bad")
        for manner in ("humour", "patience", "love", "rage", "care", "words")
    )
]
HELD_OUT = 6


def run_to_the_end(folder: Path, bundle: Bundle, estimator: str, steps: int) -> str:
    """The whole life of a process on a device: open everything, resume, finish.

    Args:
        steps: at most; an estimator that takes each example once may be done before.
    """
    spec = WRITING if estimator == "text-head" else TASK
    task = task_for(bundle, spec, on_long="truncate")
    examples = encode_rows(task, ROWS)
    asked = {"seed": 5, "steps": steps, "batch_size": 2, "eval_every": 10}
    settings = {**asked, "estimator": estimator, **rates(estimator, 1e-3)}
    with Tuner(
        open_engine(bundle, 1),
        Start.of(bundle),
        task,
        examples,
        folder=folder,
        settings=settings,
        eval_examples=examples[:HELD_OUT],
    ) as tuner:
        for _ in tuner:
            pass
        return tuner.values.sha256


def kill_runs(
    bundle: Bundle, scratch: Path, kills: int, estimator: str, steps: int
) -> dict[str, int]:
    """Kill processes ``kills`` times at random moments of their lives; let each run finish then.

    Raises:
        AssertionError: a run ended on other values than one that nobody disturbed.
    """
    start = Start.of(bundle)
    child = multiprocessing.get_context("fork").Process(
        target=run_to_the_end, args=(scratch / "whole", bundle, estimator, steps)
    )
    began = time.monotonic()
    child.start()
    child.join()
    lasted = time.monotonic() - began
    whole = replay(scratch / "whole", start)
    assert whole.history.ends, "the run that nobody disturbs failed"
    rng, done, runs = random.Random(estimator), 0, 0
    while done < kills:
        folder = scratch / f"run{runs}"
        life = partial(run_to_the_end, folder, bundle, estimator, steps)
        while run_and_kill(life, rng.random() * lasted):
            done += 1
        found = replay(folder, start)
        assert found.history.steps == whole.history.steps, f"{folder}: {found.history.steps} steps"
        assert found.sha256 == whole.sha256, f"{folder}: other values"
        assert found.best == whole.best, f"{folder}: another best step"
        runs += 1
    return {"kills": done, "runs": runs, "equal": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2000, help="over all estimators")
    parser.add_argument("--bundle", type=Path, help="instead of the tiny model's")
    parser.add_argument("--estimators", default=",".join(ESTIMATORS))
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    warnings.simplefilter("ignore", SeedtuneWarning)
    names = given.estimators.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        bundle = open_bundle(given.bundle) if given.bundle else export_tiny_bundle(scratch / "tiny")
        for name in names:
            folder = scratch / name
            folder.mkdir()
            result = kill_runs(bundle, folder, -(-given.kills // len(names)), name, given.steps)
            print(json.dumps({"estimator": name, **result}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

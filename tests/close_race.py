"""``close_race.py ENGINE BUNDLE``: close an engine while other threads use it, again and again.

A process of its own, since what can go wrong ends the process. Prints, as JSON, what the threads
were told and how many of their calls were answered.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import EngineError
from seedtune.runtime.tasks import Batch

TURNS = 6


def race(name: str, path: Path) -> dict[str, Any]:
    bundle = open_bundle(path)
    values = np.stack([bundle.values.astype(np.float32)] * 2)
    batch = Batch(
        tokens=np.full((8, 32), 3),
        positions=np.arange(5),
        candidates=np.full((5, 2), 4),
        gold=np.zeros(8, np.int64),
    )
    told: set[str] = set()
    answered = [0, 0]
    only_scores = threading.Event()

    def score(engine: Any) -> None:
        try:
            while True:
                assert np.isfinite(engine.score(batch, values).logp).all()
                answered[0] += 1
        except EngineError as error:
            told.add(str(error))

    def write(engine: Any) -> None:
        try:
            while True:
                text = engine.text(values[0])
                for token in (3, 4, 5):
                    text.read([token])
                answered[1] += 1
        except EngineError as error:
            if "cannot write text" in str(error):
                only_scores.set()
            else:
                told.add(str(error))

    for turn in range(TURNS):
        engine = open_engine(bundle, 1, name=name)
        threads = [threading.Thread(target=work, args=(engine,)) for work in (score, score, write)]
        before = answered[0]
        for thread in threads:
            thread.start()
        while answered[0] == before:
            time.sleep(1e-4)
        time.sleep(0.001 * turn)
        while turn == TURNS - 1 and not answered[1] and not only_scores.is_set():
            time.sleep(1e-4)  # on a busy machine no text is written in so little time
        engine.close()
        engine.close()
        for thread in threads:
            thread.join()
    return {"told": sorted(told), "scored": answered[0], "written": answered[1]}


if __name__ == "__main__":
    name, path = sys.argv[1], Path(sys.argv[2])
    if name != "executorch-java":
        print(json.dumps(race(name, path)))
    else:
        from rehearsal import jvm

        jvm.start()
        print(json.dumps(race(name, path)), flush=True)
        jvm.leave()

"""``engine_run.py ENGINE BUNDLE FOLDER``: what an engine computes, in a process of its own."""

import hashlib
import json
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime import open_model
from seedtune.runtime.engines import Scores, open_engine
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.tasks import Batch

TASK = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"1": " great", "0": " terrible"},
}
WRITING = {"kind": "completion", "template": "", "completion_field": "text"}
ROWS = [
    {"text": f"A film about {word}, told with {manner}.", "label": str(place % 2)}
    for place, (word, manner) in enumerate(
        (word, manner) for word in ("rain", "a cat", "a town") for manner in ("humour", "patience")
    )
]


def request(bundle: Any, rows: int, length: int, probes: int) -> tuple[Batch, Any]:
    """The same at every call."""
    rng = np.random.default_rng([rows, length, probes])
    batch = Batch(
        tokens=rng.integers(0, bundle.vocab_size, (rows, length)),
        positions=rng.integers(0, rows * length, rows + 1),
        candidates=rng.integers(0, bundle.vocab_size, (rows + 1, 3)),
        gold=np.zeros(rows, np.int64),
    )
    noise = rng.standard_normal((probes, bundle.K), np.float32)
    return batch, bundle.values.astype(np.float32) + np.float32(1e-2) * noise


def said(work: Any) -> str:
    """The message of the error that ``work`` ends in."""
    try:
        work()
    except SeedtuneError as error:
        return str(error)
    return "no error"


def results(name: str, bundle: Path, folder: Path) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # held-out rows that are training rows, too
    found: dict[str, Any] = {"scores": [], "runs": {}}
    with open_model(bundle, engine=name, threads=1, task=TASK) as model:
        requests = [request(model.bundle, *sizes) for sizes in ((2, 32, 2), (1, 5, 1), (2, 9, 2))]
        for batch, values in requests:
            found["scores"].append(hashes(model.engine.score(batch, values)))
        found["behind"] = []
        for batch, values in requests if model.bundle.bounds.prefix else ():
            behind = replace(batch, prefix=np.arange(3, 23))
            found["behind"].append(hashes(model.engine.score(behind, values)))
        for estimator in ("two-point", "per-example", "readout"):
            found["runs"][estimator] = run(model, folder, estimator)
        shape = model.bundle.adapter_shape
        if shape is not None:
            adapter = np.random.default_rng(7).standard_normal(shape, np.float32)
            batch, values = requests[0]
            moved = [model.engine.score(batch, values, a).logp for a in (adapter, 0 * adapter)]
            found["adapter"] = [hashlib.sha256(each.tobytes()).hexdigest() for each in moved]
        if model.bundle.program("executorch").generation is not None:
            text = model.engine.text(model.bundle.values.astype(np.float32))
            seen = [text.read([3, 4, 5]), text.read([6])]
            text.rewind(2)
            seen.append(text.read([7]))
            found["written"] = [hashlib.sha256(each.tobytes()).hexdigest() for each in seen]
        if name == "executorch-java":
            found |= only_java(model, requests)
    if shape is not None:
        with open_model(bundle, engine=name, threads=1, task=WRITING) as model:
            found["runs"]["text-head"] = run(model, folder, "text-head")
    return found


def hashes(scores: Scores) -> list[str]:
    parts = [scores.logp] if scores.hidden is None else [scores.logp, scores.hidden]
    return [hashlib.sha256(part.tobytes()).hexdigest() for part in parts]


def run(model: Any, folder: Path, estimator: str) -> list[str]:
    """At most four steps; hashes of the journal and of the values."""
    with model.tuner(
        folder / estimator, ROWS, ROWS[:2], estimator=estimator, steps=4, batch_size=4
    ) as tuner:
        for _ in tuner:
            pass
        assert tuner.history.steps == tuner.history.settings.resolved_steps >= 2
        journal = (folder / estimator / "journal.bin").read_bytes()
        return [hashlib.sha256(journal).hexdigest(), tuner.values.sha256]


def only_java(model: Any, requests: Any) -> dict[str, Any]:
    bundle, engine = model.bundle, model.engine
    alone = [engine.score(*each).logp.tobytes() for each in requests]
    together: list[bytes] = [b""] * len(requests)

    def work(place: int) -> None:
        together[place] = engine.score(*requests[place]).logp.tobytes()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors: dict[str, str] = {}
    batch, values = requests[0]
    errors["entries"] = said(lambda: engine.score(batch, values[:, 1:].copy()))
    errors["threads"] = said(lambda: open_engine(bundle, 2, name="executorch-java"))
    second = open_engine(bundle, 1, name="executorch-java")
    second.close()
    second.close()
    errors["closed"] = said(lambda: second.score(batch, values))
    with open_engine(replace(bundle, mean_blocks=()), 1, name="executorch-java") as other:
        errors["hidden"] = said(lambda: other.score(batch, values))
    errors["tokens"] = said(
        lambda: engine.score(replace(batch, tokens=batch.tokens + 10**6), values)
    )
    from seedtune.runtime.engines.executorch_java import JavaEngine

    for what, content in (("damaged", b"x" * 2000), ("empty", b"")):
        file = Path(sys.argv[3]) / f"{what}.pte"
        file.write_bytes(content)
        errors[what] = said(lambda file=file: JavaEngine(bundle, file, 1))
    again = engine.score(*requests[0]).logp.tobytes()
    return {"same_together": alone == together, "still": again == alone[0], "errors": errors}


if __name__ == "__main__":
    name, bundle, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    if name != "executorch-java":
        print(json.dumps(results(name, bundle, folder)))
    else:
        from rehearsal import jvm

        jvm.start()
        try:
            print(json.dumps(results(name, bundle, folder)))
            jvm.leave()
        except BaseException:
            import traceback

            traceback.print_exc()
            jvm.leave(1)

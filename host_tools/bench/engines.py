"""``seedtune bench engines``: one bundle's programs on this machine's CPU, engine beside engine.

SmolLM2 and SST-2. Of each engine: how far its losses are from the first one's, their noise and what
that does to a two-point estimate, what a tuning run learns with the same settings (and that its
journal replays to the same values without any engine), the time of a pass over the first one's and
over the same program's without the sparse term, in turns, and the peak memory of a process of its
own. ``engines.md`` beside the figures says what they mean. Figures are written as they come, so
that a benchmark cut short leaves the others.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.export.lower.programs import FORMATS
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.engines import Engine, engine_module, open_engine
from seedtune.runtime.estimators.noise import perturb
from seedtune.runtime.files import default_cache
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.tasks import Batch, Encoded, Task

from ..data.fetch import fetch
from ..data.named_tasks import TaskData, load_task
from ..prepare.prepare import prepare
from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .measuring.slopes import described, slopes
from .measuring.timing import in_turns
from .measuring.tuning_run import encode, tune
from .processes import device as process
from .programs.without_sparse_term import FORMATS_TAKEN, without_sparse_term

ENGINES = ("executorch-native", "onnxruntime", "torch-int4:cpu")
"""The first is what the others are held against."""
ROWS, LENGTH = 16, 64
"""Of the batches that peaks are taken at."""
SHORT = 32
TURNS = 3
COMPARED = 64
"""Sentences whose losses are compared."""
NOISE = (1e-6, 1e-4)
"""Perturbations under which a batch's loss is measured again and again."""
REPEATS = 4
TEST_ROWS = 200
EPS = (1e-3, 1e-2)
RATE = 3e-5
"""Of the two-point runs."""
OF_NOISE = 2
"""The first so many engines estimate slopes and make two-point runs: activations of int8 and of
float32. Those of torch are as free of noise as ONNX's."""


def bench_engines(
    *,
    bundle: Path | None = None,
    methods: Sequence[str] = ENGINES,
    forwards: int = 0,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Figures of all engines, also written to ``engines.json`` in ``results``.

    Args:
        bundle: with all programs; by default exported and kept in the cache.
        methods: engines to measure, the one to compare with first.
        forwards: of two-point runs at each of ``EPS``; 0: none.

    Returns:
        By engine: ``loss``, ``apart_mean``, ``apart_most``, ``noise``, ``slopes``, ``readout`` and
        ``two-point, eps E`` (tuning runs), ``seconds_over_first`` by threads (of one thread in
        seconds of the processor), ``over_dense``, ``peak_rss_bytes`` and ``over_program_bytes``.
    """
    opened = open_bundle(bundle) if bundle is not None else _prepared()
    data = load_task("sst2")
    task, train, test = encode(data, opened.tokenizer(), opened.bounds, opened.pad_id, TEST_ROWS)
    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    about = {"model": "smollm2-135m", "task": "sst2", "bundle_sha256": opened.sha256}

    def written() -> dict[str, Any]:
        return write_figures("engines", {**about, "engines": found}, results)

    for figures, name in zip(_losses(opened, task, test, methods), methods, strict=True):
        found[name] |= figures
    for name, by_eps in _slopes(opened, task, test, methods[:OF_NOISE], found).items():
        found[name]["slopes"] = by_eps
    written()
    for threads in (1, 2):
        say(f"timing in turns, {threads} threads")
        for name, ratio in _times(opened, methods, threads).items():
            found[name].setdefault("seconds_over_first", {})[str(threads)] = ratio
    written()
    for name in methods:
        say(f"{name}: peak of a process, cost of the sparse term")
        found[name] |= _peak(opened, name, data)
        if engine_module(name).FORMAT in FORMATS_TAKEN:
            found[name]["over_dense"] = _over_dense(opened, name)
    written()
    readout = {"estimator": "readout", "steps": 40, "eval_every": 20, "seed": 0}
    runs = [(name, "readout", readout) for name in methods]
    for eps in EPS if forwards else ():
        steps = forwards // 2
        settings = {
            "estimator": "two-point",
            "eps": eps,
            "lr": RATE,
            "steps": steps,
            "eval_every": steps // 2,
            "seed": 0,
        }
        runs += [(name, f"two-point, eps {eps:g}", settings) for name in methods[:OF_NOISE]]
    for name, label, settings in runs:
        say(f"{name}: {label}")
        found[name][label] = _run(opened, name, task, train, test, settings)
        written()
    return written()


def _prepared() -> Bundle:
    say("preparing the model for every engine")
    return prepare(str(fetch("smollm2-135m")), to=FORMATS).bundle


@contextmanager
def _looks(bundle: Bundle, task: Task, examples: Sequence[Encoded], name: str) -> Iterator[Look]:
    with open_engine(bundle, 1, name=name) as engine:
        yield Look(engine, task, bundle.bounds, examples)


def _losses(
    bundle: Bundle, task: Task, test: Sequence[Encoded], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Losses of some sentences against the first engine's, and the noise of a batch's."""
    values = bundle.values.astype(np.float32)
    figures: list[dict[str, Any]] = []
    first: Any = None
    for name in names:
        say(f"{name}: losses and their noise")
        with _looks(bundle, task, test[:COMPARED], name) as look:
            losses = look.losses(np.stack([values, values]))
        first = losses[0] if first is None else first
        apart = np.abs(losses[0] - first)
        noise = {}
        with _looks(bundle, task, test[:16], name) as look:
            for size in NOISE:
                sums, rows = [], np.empty((2, len(values)), np.float32)
                for repeat in range(REPEATS):
                    perturb(values, rows, (size, -size), seed=7, step=repeat, kind="rademacher")
                    sums.append(look.mean_losses(rows).sum())
                noise[f"{size:g}"] = float(np.std(sums, ddof=1)) / math.sqrt(2)
        figures.append(
            {
                "loss": float(losses[0].mean()),
                "apart_mean": float(apart.mean()),
                "apart_most": float(apart.max()),
                "equal_probes_bit_equal": bool((losses[0] == losses[1]).all()),
                "noise": noise,
            }
        )
    return figures


def _slopes(
    bundle: Bundle,
    task: Task,
    test: Sequence[Encoded],
    names: Sequence[str],
    figures: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, dict[str, float]]]:
    """See ``slopes.described``; of the first 16 sentences."""
    values, found = bundle.values.astype(np.float32), {}
    for name in names:
        say(f"{name}: slopes")
        with _looks(bundle, task, test[:16], name) as look:
            found[name] = {eps: slopes(look.mean_losses, values, eps) for eps in EPS}
    quiet = min(names, key=lambda name: figures[name]["noise"][f"{NOISE[0]:g}"])
    return described(found, quiet, EPS)


def _times(bundle: Bundle, names: Sequence[str], threads: int) -> dict[str, float]:
    """Time of a batch of ``ROWS`` short rows, two probes, over the first engine's."""
    batch, values = _short_batch(bundle)
    engines: dict[str, Engine] = {name: open_engine(bundle, threads, name=name) for name in names}
    try:
        _, ratios = in_turns(
            {name: lambda each=each: each.score(batch, values) for name, each in engines.items()},
            TURNS,
            time.process_time if threads == 1 else time.perf_counter,
        )
    finally:
        for each in engines.values():
            each.close()
    return ratios


def _over_dense(bundle: Bundle, name: str) -> float:
    """Time of a pass over the same program's without the sparse term, one thread, in turns."""
    batch, values = _short_batch(bundle)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_engine(without_sparse_term(bundle, name, Path(folder)), 1, name=name) as dense,
        open_engine(bundle, 1, name=name) as whole,
    ):
        _, ratios = in_turns(
            {
                "dense": lambda: dense.score(batch, values),
                "whole": lambda: whole.score(batch, values),
            },
            TURNS,
            time.process_time,
        )
    return ratios["whole"]


def _short_batch(bundle: Bundle) -> tuple[Batch, NDArray[np.float32]]:
    """``ROWS`` short rows of random tokens, or as many as a pass takes, and two equal probes."""
    rng = np.random.default_rng(0)
    rows = min(ROWS, bundle.bounds.tokens // SHORT)
    batch = Batch(
        tokens=rng.integers(0, bundle.vocab_size, (rows, SHORT)),
        positions=np.arange(rows) * SHORT + SHORT - 1,
        candidates=rng.integers(0, bundle.vocab_size, (rows, 2)),
        gold=np.zeros(rows, np.int64),
    )
    return batch, np.repeat(bundle.values.astype(np.float32)[None], 2, axis=0)


def _peak(bundle: Bundle, name: str, data: TaskData) -> dict[str, Any]:
    """Of a process that tunes with batches of ``ROWS`` x ``LENGTH`` tokens."""
    program = bundle.program(engine_module(name).FORMAT)
    assert program is not None, name
    joined = [
        {**row, "text": " ".join(each["text"] for each in data.train[first : first + 8])}
        for first, row in enumerate(data.train[: 4 * ROWS])
    ]
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.json"
        task.write_text(json.dumps({"spec": data.spec, "rows": joined}), encoding="utf-8")
        found = run_module(process.__name__, f"tune:{name}", bundle.path, ROWS, LENGTH, 3, task)
    size = sum((bundle.path / file).stat().st_size for file in program.files)
    return {
        "peak_rss_bytes": found["peak_rss_bytes"],
        "program_bytes": size,
        "over_program_bytes": found["peak_rss_bytes"] - size,
        "torch": found["torch"],
    }


def _run(
    bundle: Bundle,
    name: str,
    task: Task,
    train: Sequence[Encoded],
    test: Sequence[Encoded],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """A tuning run by an engine; kept in the cache, so that it is resumed."""
    start, steps = Start.of(bundle), settings["steps"]
    label = f"{bundle.sha256[:12]}-{name.replace(':', '-')}-{settings['estimator']}"
    folder = default_cache() / "bench" / f"engines-{label}-{settings.get('eps')}-{steps}"
    with open_engine(bundle, 1, name=name) as engine:
        found = tune(engine, start, task, train, test, settings, folder)
    done = replay(folder, start)  # no engine is open
    accuracy = found["after"]["accuracy"]
    error = math.sqrt(accuracy * (1 - accuracy) / len(test))
    return {
        "before": found["before"],
        "after": found["after"],
        "standard_error": error,
        "curve": found["curve"],
        "values_sha256": done.sha256,
        "program": done.history.program,
    }

"""``seedtune bench recipes``: what stays float, how weights are rounded, how many are tuned.

Loss noise, quality, learning, speed and size of the same model under several ways to export it. The
noise is what a two-point estimate has to overcome (``seedtune.runtime.tuning.loss_noise``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import Engine, open_engine
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning.batches import batch_indices
from seedtune.runtime.tuning.loss_noise import LossNoise, measure_loss_noise

from ..data.calibration import load_calibration
from ..data.fetch import fetch
from ..data.named_tasks import TaskData, load_task
from ..prepare.prepare import Prepared
from ..quickstart import DEFAULT_TASK, MODEL
from .contenders.steps import dense_forward, sparse_forward
from .measuring.perplexity import engine_score, perplexity
from .measuring.results_files import RESULTS, say, write_figures
from .measuring.timing import in_turns
from .measuring.tuning_run import Progress, learn
from .programs.dense_program import dense_program
from .programs.variants import quickstart_program, variant
from .step import LENGTH, ROWS

DEFAULT = "sensitive columns float"
RECIPES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "all columns int8": {"recipe": {"float_columns": False}},
    "and 2 % outliers": {"recipe": {"outlier_share": 0.02}},
    "and 5 % outliers": {"recipe": {"outlier_share": 0.05}},
    "rounded to the nearest": {"recipe": {"rounding": "nearest"}},
    "0.01 % tuned": {"fraction": 1e-4},
    "1 % tuned": {"fraction": 1e-2},
}
"""What differs from the defaults of ``prepare``."""
EPS = (1e-3, 1e-2)
LEARNING = {
    "steps": 100,
    "eval_every": 50,
    "estimator": "two-point",
    "lr": 1e-4,
    "eps": 1e-2,
    "schedule": "linear",
}
"""The run by whose curve programs are compared."""
TEST_ROWS = 300


def bench_recipes(
    *,
    recipes: tuple[str, ...] = tuple(RECIPES),
    turns: int = 7,
    base: Prepared | None = None,
    threads: int | None = None,
    runs: Path | None = None,
    results: Path = RESULTS,
    progress: Progress = say,
) -> dict[str, Any]:
    """Measure every recipe of ``recipes``; each is exported once and kept, as are its runs.

    Returns:
        ``recipes`` by name: ``sigma`` of the batch loss, ``estimate_error`` by eps,
        ``typical_estimate`` by eps (root mean square over directions), ``perplexity``, ``curve``
        (of ``LEARNING``, see ``tuning_run.learn``), ``entries`` (tuned), ``forward_seconds``,
        ``over_dense``, ``compact_share``, ``program_bytes``; and ``dense_forward_seconds``.
    """
    base = base or quickstart_program()
    dense = dense_program(base)
    data = load_task(DEFAULT_TASK)
    bundles: dict[str, Bundle] = {}
    rows: dict[str, Any] = {}
    text = load_calibration(_tokenizer()).held_out
    for name in recipes:
        options = RECIPES[name]
        prepared = variant(_slug(name), base, **options) if options else base
        bundle = bundles[name] = prepared.bundle
        values = bundle.values.astype(np.float32)[None]
        with open_engine(bundle, threads or "auto") as engine:
            noise = loss_noise(engine, bundle, data)
            generic = perplexity(engine_score(engine), text, values, bundle.bounds)
        rows[name] = {
            **noise_figures(noise),
            "perplexity": generic,
            "curve": learn(
                bundle,
                data,
                LEARNING,
                test_rows=TEST_ROWS,
                threads=threads,
                runs=runs,
                progress=progress,
            )["curve"],
            "entries": bundle.K,
            "compact_share": bundle.manifest["quantisation"]["compact_share"],
            "program_bytes": bundle.program_path.stat().st_size,
        }
        progress(f"{name}: {rows[name]}")
    forwards = {"dense": dense_forward(base.bundle, dense, ROWS, LENGTH)} | {
        name: sparse_forward(bundle, ROWS, LENGTH) for name, bundle in bundles.items()
    }
    seconds, over_dense = in_turns(forwards, turns)
    for name, row in rows.items():
        row |= {"forward_seconds": seconds[name], "over_dense": over_dense[name]}
    figures = {
        "batch": [ROWS, LENGTH],
        "mask": base.bundle.manifest["mask"],
        "dense_forward_seconds": seconds["dense"],
        "dense_program_bytes": dense.stat().st_size,
        "recipes": rows,
    }
    return write_figures("recipes", figures, results)


def loss_noise(engine: Engine, bundle: Bundle, data: TaskData) -> LossNoise:
    """Noise of the first training batch of seed 0, as the tuner measures it."""
    task = task_for(bundle, data.spec, on_long="truncate")
    train = encode_rows(task, data.train[:512])
    lengths = np.array([example.length for example in train])
    batch = [train[n] for n in batch_indices(0, seed=0, lengths=lengths, batch_size=ROWS)]
    return measure_loss_noise(
        Look(engine, task, bundle.bounds, batch).mean_losses,
        bundle.values.astype(np.float32),
        seed=0,
        ladder=EPS,
        repeats=16,
    )


def noise_figures(noise: LossNoise) -> dict[str, Any]:
    """The part of a noise measurement that the table shows."""
    return {
        "loss": noise.loss,
        "sigma": noise.sigma,
        "estimate_error": {f"{rung.eps:g}": rung.error for rung in noise.rungs},
        "typical_estimate": {f"{rung.eps:g}": rung.estimate for rung in noise.rungs},
    }


def _tokenizer() -> Any:
    from seedtune.export.model.load_model import load_causal_lm

    return load_causal_lm(str(fetch(MODEL))).tokenizer


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)

"""``seedtune bench quality``: methods against baselines on real tasks at equal forwards.

A table of (method, task, seed). Every cell runs in a process of its own and stands in the results
as soon as it is done; what stands there is not run again, so that the table grows over many runs.
"""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines.memory import peak_resident_bytes
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.estimators import settings_of

from ..data.named_tasks import TaskData, load_task
from ..quickstart import MODEL
from ..this_machine import machine
from .contenders.task_methods import METHODS, tuner_settings
from .measuring.default_bundle import default_bundle, model_source
from .measuring.process import call_function
from .measuring.quality_table import TEST_ROWS, show_quality, summarise_quality
from .measuring.results_files import RESULTS, merge_rows, read_rows, row_key, say

__all__ = ["bench_quality", "show_quality"]

LENGTH = {
    "sst2": 48,
    "sst2-shown": 72,
    "sms-spam": 64,
    "copa": 64,
    "boolq": 128,
    "cb": 128,
    "chat": 64,
}
"""Tokens of an example at most; longer texts are cut. Holds 97 % of SST-2."""
SEEDS = (0, 1, 2)
FORWARDS = 1000
BATCH_SIZE = 16


def bench_quality(
    *,
    methods: tuple[str, ...] = tuple(METHODS),
    tasks: tuple[str, ...] = tuple(LENGTH),
    seeds: tuple[int, ...] = SEEDS,
    forwards: int = FORWARDS,
    test_rows: int = TEST_ROWS,
    bundle: Path | None = None,
    model: str = MODEL,
    threads: int | None = None,
    results: Path = RESULTS,
    summary: bool = False,
) -> dict[str, Any]:
    """Fill in the cells asked for, those of the first seed first, and summarise all results.

    Args:
        forwards: of every method that learns by forwards alone.
        test_rows: to judge on, the first so many; of another number the summary keeps a task apart.
        bundle: exported program and mask of ``model``; by default as the quickstart makes it.
        summary: compute nothing, read the committed results.

    Returns:
        See ``quality_table.summarise_quality``.

    Raises:
        SeedtuneError: an unknown method or task, or what a cell raises.
    """
    if summary:
        return summarise_quality(read_rows(results))
    for kind, names, known in (("method", methods, METHODS), ("task", tasks, LENGTH)):
        for name in names:
            if name not in known:
                raise SeedtuneError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    if bundle is None and any(METHODS[name].bundle for name in methods):
        bundle = default_bundle(model)
    for task in tasks:
        for seed in seeds:
            for name in methods:
                program = bundle if METHODS[name].bundle else None
                settings = _settings(name, task, forwards, test_rows, program, model)
                key = row_key(name, task, seed, settings)
                if key not in read_rows(results):
                    row = call_function(_work, name, task, seed, settings, program, threads)
                    merge_rows({key: row}, results)
                    say(f"{key}: {row['curve'][-1]}")
    return summarise_quality(read_rows(results))


def _settings(
    name: str, task: str, forwards: int, test_rows: int, bundle: Path | None, model: str
) -> dict[str, Any]:
    """All that a cell's result depends on, but its seed."""
    method = METHODS[name]
    data = load_task(task)
    settings: dict[str, Any] = {
        "model": model,
        "data_sha256": _data_sha256(data)[:16],
        "length": LENGTH[task],
        "test_rows": test_rows,
        "batch_size": BATCH_SIZE,
        **method.settings,
        **method.by_task.get(task, {}),
    }
    if "forwards" in settings:
        settings["forwards"] = forwards
    if bundle is not None:
        settings["bundle_sha256"] = open_bundle(bundle).sha256
    return settings


def _data_sha256(data: TaskData) -> str:
    """Changes with the rows, their order and the prompt."""
    content = json.dumps([data.train, data.test, data.spec], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _work(
    name: str,
    task: str,
    seed: int,
    settings: dict[str, Any],
    bundle: Path | None,
    threads: int | None,
) -> dict[str, Any]:
    method, data, source = METHODS[name], load_task(task), model_source(settings["model"])
    run = import_module(f"{__package__}.contenders.{method.module}").run_on_task
    whole = {**settings, "seed": seed, "threads": threads, "source": source, "bundle": bundle}
    found: dict[str, Any] = {}
    if method.float32:
        import torch

        from .contenders.float_task import FloatTask

        if threads:
            torch.set_num_threads(threads)
        cell = FloatTask.of(source, data, whole)
        before = cell.generic_perplexity()
        found["metric"] = cell.task.metric_name
        found |= run(cell, whole)
        if before is not None:
            found["generic_perplexity"] = {"before": before, "after": cell.generic_perplexity()}
    else:
        found |= run(data, whole)
    if "estimator" in settings:
        found["tuner_settings"] = settings_of(tuner_settings(whole)).to_dict()
    return {
        "peak_rss_bytes": peak_resident_bytes(),
        **found,
        "machine": machine(),
        "method": name,
        "task": task,
        "seed": seed,
        "settings": settings,
    }

"""``seedtune bench quality``: methods against baselines on real tasks at equal forwards.

A table of (method, task, seed). Every cell is kept in the cache under the hash of its settings, the
tuner's defaults included, and what is finished is merged into the committed results, so that the
table grows over many runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines.system_memory import peak_resident_bytes
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import default_cache, replace_file

from ..data.named_tasks import TaskData, load_task
from ..quickstart import MODEL
from ..this_machine import machine
from .contenders.task_methods import METHODS, resolved_settings
from .measuring.process import call_function
from .measuring.results_files import RESULTS, say
from .measuring.tuning_run import Progress
from .programs.default_bundle import default_bundle, model_source
from .summaries.quality import TEST_ROWS, show_quality, summarise_quality
from .summaries.rows import merge_rows, read_rows, row_key

__all__ = ["bench_quality", "show_quality"]

LENGTH = {
    "sst2": 48,
    "sst2-shown": 72,
    "sms-spam": 64,
    "boolq": 128,
    "cb": 128,
    "copa": 64,
    "chat": 64,
}
"""Tokens of an example at most; longer texts are cut. Holds 97 % of SST-2, half of BoolQ."""
SEEDS = (0, 1, 2)
FORWARDS = 1000
BATCH_SIZE = 16


@dataclass(frozen=True)
class Cell:
    """One (method, task, seed) and all that its result depends on."""

    method: str
    task: str
    seed: int
    settings: dict[str, Any]
    bundle: Path | None

    @property
    def key(self) -> str:
        """``method/task/seed/settings``: the name of its row in the results."""
        return row_key(self.method, self.task, self.seed, self.settings)

    @property
    def tuner_settings(self) -> dict[str, Any] | None:
        """All settings of the tuner, defaults included, if the tuner runs it."""
        if "estimator" not in self.settings:
            return None
        return resolved_settings({**self.settings, "seed": self.seed}).to_dict()

    def folder(self, runs: Path) -> Path:
        """Where its run is kept. A method that can be lengthened shares it between lengths.

        Unlike ``key``, it changes with the tuner's defaults too: what was computed with others is
        computed again, and takes the old row's place in the results.
        """
        settings = dict(self.settings)
        if METHODS[self.method].lengthens:
            del settings["forwards"]
        if self.tuner_settings is not None:
            settings["tuner"] = self.tuner_settings
        return (
            runs
            / hashlib.sha256(
                row_key(self.method, self.task, self.seed, settings).encode()
            ).hexdigest()[:16]
        )


def bench_quality(
    *,
    methods: tuple[str, ...] = tuple(METHODS),
    tasks: tuple[str, ...] = tuple(LENGTH),
    seeds: tuple[int, ...] = SEEDS,
    forwards: int = FORWARDS,
    test_rows: int = TEST_ROWS,
    lr: float | None = None,
    bundle: Path | None = None,
    model: str = MODEL,
    threads: int | None = None,
    runs: Path | None = None,
    results: Path = RESULTS,
    summary: bool = False,
    progress: Progress = say,
) -> dict[str, Any]:
    """Fill in the cells asked for, those of the first seed first, and summarise all results.

    Args:
        forwards: of every method that learns by forwards alone.
        test_rows: to judge on, the first so many; of another number the summary keeps a task apart.
        lr: learning rate in place of the methods' own, for a search.
        bundle: exported program and mask; by default the quickstart's.
        runs: where cells are kept; by default in the cache.
        summary: compute nothing, read the committed results.

    Returns:
        See ``summaries.quality.summarise_quality``.

    Raises:
        SeedtuneError: an unknown method or task, or what a cell raises.
    """
    if summary:
        return summarise_quality(read_rows(results))
    for kind, names, known in (("method", methods, METHODS), ("task", tasks, LENGTH)):
        for name in names:
            if name not in known:
                raise SeedtuneError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    runs = runs or default_cache() / "quality"
    for task in tasks:
        for seed in seeds:
            for name in methods:
                cell = _cell(name, task, seed, forwards, test_rows, lr, bundle, model)
                row = _finished(cell, runs) or _compute(cell, runs, threads)
                progress(f"{cell.key}: {row['curve'][-1]}")
                merge_rows({cell.key: row}, results)
    return summarise_quality(read_rows(results))


def _cell(
    name: str,
    task: str,
    seed: int,
    forwards: int,
    test_rows: int,
    lr: float | None,
    bundle: Path | None,
    model: str,
) -> Cell:
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
    if lr is not None and "lr" in settings:
        settings["lr"] = lr
    if method.bundle:
        bundle = bundle or default_bundle(model)
        settings["bundle_sha256"] = open_bundle(bundle).sha256
    return Cell(name, task, seed, settings, bundle if method.bundle else None)


def _data_sha256(data: TaskData) -> str:
    """Changes with the rows, their order and the prompt."""
    content = json.dumps([data.train, data.test, data.spec], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _finished(cell: Cell, runs: Path) -> dict[str, Any] | None:
    file = cell.folder(runs) / _row_file(cell)
    if not file.is_file():
        return None
    row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return row


def _row_file(cell: Cell) -> str:
    return f"row-{cell.settings.get('forwards', 0)}.json"


def _compute(cell: Cell, runs: Path, threads: int | None) -> dict[str, Any]:
    """In a process of its own: its peak memory is the cell's, and an interrupt ends it."""
    folder = cell.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = call_function(_work, cell, folder, threads)
    replace_file(folder / _row_file(cell), (json.dumps(row, indent=1) + "\n").encode())
    return row


def _work(cell: Cell, folder: Path, threads: int | None) -> dict[str, Any]:
    method = METHODS[cell.method]
    run = import_module(f"{__package__}.contenders.{method.module}").run_on_task
    source = model_source(cell.settings["model"])
    settings = {
        **cell.settings,
        "seed": cell.seed,
        "threads": threads,
        "source": source,
        "bundle": cell.bundle,
    }
    data = load_task(cell.task)
    found: dict[str, Any] = {}
    if method.float32:
        import torch

        from .contenders.float_task import FloatTask

        if threads:
            torch.set_num_threads(threads)
        task = FloatTask.of(source, data, settings)
        before = task.generic_perplexity()
        found["metric"] = task.task.metric_name
        found |= run(task, settings, folder, say)
        if before is not None:
            found["generic_perplexity"] = {"before": before, "after": task.generic_perplexity()}
    else:
        found |= run(data, settings, folder, say)
    if cell.tuner_settings is not None:
        found["tuner_settings"] = cell.tuner_settings
    return {
        "peak_rss_bytes": peak_resident_bytes(),
        **found,
        "machine": machine(),
        "method": cell.method,
        "task": cell.task,
        "seed": cell.seed,
        "settings": cell.settings,
    }

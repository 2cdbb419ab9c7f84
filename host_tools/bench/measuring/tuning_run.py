"""One tuning run for a benchmark."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from seedtune.runtime.bundle import Bounds, Bundle
from seedtune.runtime.engines import Engine
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Encoded, Task, encode_rows, task_from_spec
from seedtune.runtime.tuning.tuner import Tuner
from tokenizers import Tokenizer

from ...data.named_tasks import TaskData
from .results_files import say

Progress = Callable[[str], None]


def encode(
    data: TaskData, tokenizer: Tokenizer, bounds: Bounds, pad_id: int, test_rows: int | None = None
) -> tuple[Task, list[Encoded], list[Encoded]]:
    """The task, its training examples and the first ``test_rows`` test examples.

    Texts over ``bounds.length`` are cut.
    """
    task = task_from_spec(data.spec, tokenizer, bounds, pad_id, on_long="truncate")
    return task, encode_rows(task, data.train), encode_rows(task, data.test[:test_rows])


def tune(
    engine: Engine,
    start: Start,
    task: Task,
    train: Sequence[Encoded],
    test: Sequence[Encoded],
    settings: dict[str, Any],
    progress: Progress = say,
) -> tuple[dict[str, Any], Values]:
    """Tune on encoded examples.

    Returns:
        ``curve`` (``forwards, loss, accuracy`` of every evaluation), ``before`` and ``after`` (of
        the best evaluated step, as the tuner ships it), ``last`` (of the last step), ``skipped``,
        ``step_seconds`` (median), ``test_rows`` and the run's ``settings``; and the values after
        the last step.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Tuner(
            engine, start, task, train, folder=folder, settings=settings, eval_examples=test
        ) as tuner,
    ):
        for report in tuner:
            if report.evaluation is not None:
                progress(
                    f"step {report.step}: loss {report.evaluation.loss:.4f}, "
                    f"{task.metric_name} {report.evaluation.metric:.4f}"
                )
        history, tuned = tuner.history, tuner.tuned()
        probes = tuner.forwards // history.steps
        taken = [line["seconds"] for line in read_metrics(folder) if line["kind"] == "step"]
        last = tuner.values.copy()
    curve = [
        {"forwards": item.step * probes, "loss": item.loss, "accuracy": item.metric}
        for item in history.evaluations
    ]
    found = {
        "curve": curve,
        "before": curve[0],
        "after": {"forwards": tuned.step * probes, "loss": tuned.loss, "accuracy": tuned.metric},
        "last": curve[-1],
        "skipped": history.skipped,
        "step_seconds": statistics.median(taken) if taken else None,
        "test_rows": len(test),
        "settings": history.settings.to_dict(),
    }
    return found, last


def described(bundle: Bundle) -> dict[str, Any]:
    """What a figure's row says of the bundle that it was measured on."""
    return {
        "mask": bundle.manifest["mask"],
        "quantisation": bundle.manifest["quantisation"],
        "bundle_sha256": bundle.sha256,
    }


def mean_and_deviation(numbers: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single number)."""
    return {
        "mean": statistics.fmean(numbers),
        "deviation": statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
    }

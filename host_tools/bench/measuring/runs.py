"""What contenders share: one tuning run, the perplexity of a text, and a stopwatch."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines import Engine
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.batch_loss import passes
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Batch, Encoded, Task, encode_rows, task_from_spec
from seedtune.runtime.tuning.tuner import Tuner
from tokenizers import Tokenizer

from ...data.named_tasks import TaskData
from .results_files import say

Score = Callable[[Batch], NDArray[np.float32]]
"""Log-probabilities float32 ``[1, N, C]`` of a batch's candidates, whoever computes them."""


class Stopwatch:
    """Runs since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds`` of all threads of the process: on a machine that does
        other work they tell more."""
        return {
            "seconds": time.perf_counter() - self._began[0],
            "cpu_seconds": time.process_time() - self._began[1],
        }


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
                say(
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


def perplexity(score: Score, batches: Iterable[Batch]) -> float:
    """Over all positions of ``batches``, whose first candidates are the tokens that came."""
    total, count = 0.0, 0
    for batch in batches:
        total -= float(score(batch)[0, :, 0].sum(dtype=np.float64))
        count += len(batch.positions)
    return math.exp(total / count)


def message_batches(task: Task, examples: Sequence[Encoded], bounds: Bounds) -> Iterator[Batch]:
    """Batches of messages, their own tokens to be scored."""
    for _, batch in passes(task, examples, bounds):
        yield batch


def text_batches(text: NDArray[np.int64], bounds: Bounds) -> Iterator[Batch]:
    """``text`` int64 ``[n, length]``, as many rows at a time as the bounds allow, with the next
    tokens for candidates."""
    length = text.shape[1]
    if length > bounds.length or length - 1 > bounds.positions:
        raise ValueError(f"sequences of {length} tokens exceed {bounds}")
    rows = min(bounds.rows, bounds.positions // (length - 1))
    for first in range(0, len(text), rows):
        part = text[first : first + rows]
        places = np.arange(part.size).reshape(part.shape)[:, :-1]
        gold = np.zeros(len(part), np.int64)
        yield Batch(part, places.reshape(-1), part[:, 1:].reshape(-1, 1), gold)


def in_turns(
    alternatives: dict[str, Callable[[], object]], turns: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Run every alternative once per turn: fair on a shared machine.

    Returns:
        Median seconds of each, and the median over turns of each one's time over the first's.
    """
    for run in alternatives.values():
        run()  # first calls pack weights and fault pages in
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(turns):
        for name, run in alternatives.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    first = next(iter(seconds.values()))
    ratios = {
        name: statistics.median(own / base for own, base in zip(taken, first, strict=True))
        for name, taken in seconds.items()
    }
    return {name: statistics.median(taken) for name, taken in seconds.items()}, ratios

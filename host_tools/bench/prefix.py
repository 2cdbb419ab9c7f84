"""``seedtune bench prefix``: what demonstrations in front of every prompt cost, read once for all.

Steps of a readout and predictions on SST-2's rows behind some demonstrations, over those without,
in turns in one process; and the peak of a process that does both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from seedtune.runtime.engines.memory import peak_resident_bytes
from seedtune.runtime.model import Model, open_model

from ..data.named_tasks import load_task
from .measuring.process import call_function
from .measuring.results_files import RESULTS, say, write_figures
from .measuring.runs import in_turns

COUNTS = (2, 8, 16, 32)
ROWS = 16
"""Of a step, and of a prediction."""


def bench_prefix(
    *, bundle: Path, threads: int | None = None, turns: int = 9, results: Path = RESULTS
) -> dict[str, Any]:
    """Figures by number of demonstrations, also written to ``prefix.json`` in ``results``.

    Args:
        bundle: one that writes, of SmolLM2 by default settings.

    Returns:
        for each number ``tokens`` of the prefix, ``step`` and ``predict`` (over those of the plain
        prompt) and ``more_bytes`` (peak of a process over one of the plain prompt); and
        ``plain``, in seconds and bytes.
    """
    plain = call_function(_peak, bundle, 0, threads)
    figures: dict[str, Any] = {"rows": ROWS, "threads": threads, "plain": {"peak_bytes": plain}}
    for count in COUNTS:
        say(f"{count} demonstrations")
        found = call_function(_times, bundle, count, threads, turns)
        figures["plain"] |= found.pop("plain")
        more = call_function(_peak, bundle, count, threads) - plain
        figures[str(count)] = {**found, "more_bytes": more}
    return write_figures("prefix", figures, results)


def show_prefix(figures: dict[str, Any]) -> str:
    """A table."""
    lines = ["demonstrations  tokens  step  predict  more memory"]
    for count in COUNTS:
        row = figures[str(count)]
        lines.append(
            f"{count:14}{row['tokens']:8}{row['step']:6.2f}{row['predict']:9.2f}"
            f"{row['more_bytes'] / 1e6:10.0f} MB"
        )
    return "\n".join(lines)


def _opened(bundle: Path, count: int, threads: int | None) -> tuple[Model, list[Any]]:
    """A model behind so many demonstrations, and rows to learn from."""
    data = load_task("sst2")
    model = open_model(bundle, task=data.spec, on_long="truncate", threads=threads or "auto")
    rows = data.train[:2000]
    return model, model.show(rows, count) if count else list(rows)


def _times(bundle: Path, count: int, threads: int | None, turns: int) -> dict[str, Any]:
    with ExitStack() as stack:
        models = {name: _opened(bundle, n, threads) for name, n in (("plain", 0), ("shown", count))}
        rows = models["shown"][1]
        steps: dict[str, Callable[[], object]] = {}
        answers: dict[str, Callable[[], object]] = {}
        for name, (model, _) in models.items():
            stack.enter_context(model)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            tuner = model.tuner(folder, rows, batch_size=ROWS, steps=2 * turns)
            steps[name] = stack.enter_context(tuner).step
            answers[name] = partial(model.predict, rows[:ROWS])
        seconds, over = in_turns(steps, turns)
        later, over_predict = in_turns(answers, turns)
        tokens = len(models["shown"][0].task.prefix)
    return {
        "tokens": tokens,
        "step": over["shown"],
        "predict": over_predict["shown"],
        "plain": {"step_seconds": seconds["plain"], "predict_seconds": later["plain"]},
    }


def _peak(bundle: Path, count: int, threads: int | None) -> int:
    model, rows = _opened(bundle, count, threads)
    with (
        model,
        tempfile.TemporaryDirectory() as folder,
        model.tuner(folder, rows, batch_size=ROWS, steps=3) as tuner,
    ):
        for _ in tuner:
            model.predict(rows[:ROWS])
    peak = peak_resident_bytes()
    assert peak is not None
    return peak

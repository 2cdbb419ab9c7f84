"""How many threads to use, by measurement: more are not always faster.

A phone's small cores hold its large ones up, a shared machine has fewer than it shows, and short
passes leave little to share. The choice is kept in seedtune's cache for the bundle, the engine and
the cores.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import EngineError, TuningError
from ..files import default_cache
from ..tasks import Batch, Encoded
from .contract import Engine
from .memory import PassMemory, fit_passes

WORTH = 0.97
"""A larger count must take at most this share of a smaller one's time to be chosen."""
_TURNS = 3
_MANY = 64
"""Threads that any machine can start."""


def choose_threads(
    bundle: Bundle, name: str, opened: Callable[[int], Engine], memory_limit: int | None
) -> int:
    """The thread count with the fastest pass: measured the first time, then remembered.

    Args:
        name: of the engine.
        opened: opens the program with so many threads, of an engine that can change them now.
        memory_limit: bytes that this process may hold. Where not even a small pass fits, nothing
            is measured and one thread is the answer.

    Raises:
        EngineError: the program cannot be opened.
    """
    cores = usable_cores()
    file = (
        default_cache() / "threads" / f"{bundle.sha256[:16]}-{name.replace(':', '-')}-{cores}.json"
    )
    known = _read(file, cores)
    if known is not None:
        return known
    try:
        seconds = {
            count: _pass_seconds(bundle, opened(count), memory_limit) for count in candidates(cores)
        }
    except TuningError:
        return 1
    chosen = fastest(seconds)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"threads": chosen, "pass_seconds": seconds}
        file.write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        pass  # it will be measured again
    return chosen


def check_threads(threads: int) -> None:
    """Refuse a count that no engine can start: a library that cannot ends the process.

    Raises:
        EngineError: it is below 1, or far above the cores.
    """
    cores = usable_cores()
    most = max(_MANY, 4 * cores)
    if type(threads) is not int or not 1 <= threads <= most:
        raise EngineError(
            f"threads is {threads!r:.40}, must be 1 to {most}; this process has {cores} cores"
        )


def usable_cores() -> int:
    """Cores that this process may run on, as far as the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def candidates(cores: int) -> list[int]:
    """1, 2, 4, 6, 8, ... up to ``cores``, and ``cores`` itself."""
    return sorted({1, *range(2, cores, 2), cores})


def fastest(seconds: dict[int, float]) -> int:
    """The count to use, given the seconds of a pass with each."""
    chosen = min(seconds)
    for count in sorted(seconds):
        if seconds[count] < WORTH * seconds[chosen]:
            chosen = count
    return chosen


def _read(file: Path, cores: int) -> int | None:
    try:
        threads: Any = json.loads(file.read_text(encoding="utf-8"))["threads"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return threads if type(threads) is int and 1 <= threads <= cores else None


def _pass_seconds(bundle: Bundle, engine: Engine, memory_limit: int | None) -> float:
    """The least of some passes as the loop makes them: short rows, all probes that fit.

    Raises:
        TuningError: not one probe of one row fits.
    """
    length = min(32, bundle.bounds.length)
    last = np.array([[0, length - 1]])
    row = Encoded(np.zeros((1, length), np.int64), last, np.zeros((1, 1), np.int64), gold=0)
    with engine:
        memory = PassMemory.of_bundle(bundle)
        passes = fit_passes(bundle.bounds, memory, [row], limit=memory_limit, now=engine.memory())
        rows = min(passes.tokens // length, passes.positions)
        batch = Batch(
            tokens=np.zeros((rows, length), np.int64),
            positions=np.arange(rows) * length + length - 1,
            candidates=np.zeros((rows, 1), np.int64),
            gold=np.zeros(rows, np.int64),
        )
        values = np.repeat(bundle.values.astype(np.float32)[None], passes.probes, axis=0)
        engine.score(batch, values)
        taken = []
        for _ in range(_TURNS):
            began = time.perf_counter()
            engine.score(batch, values)
            taken.append(time.perf_counter() - began)
        return min(taken)

"""Time alternatives fairly on a shared machine: in turns, by the median of ratios within a turn."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Spent(NamedTuple):
    """What something took."""

    seconds: float
    cpu_seconds: float
    """Seconds of all threads of the process: on a machine that does other work it tells more."""


class Stopwatch:
    """Since it was made, or last read."""

    def __init__(self) -> None:
        self._before = _now()

    def read(self) -> Spent:
        """What was spent; begins again."""
        now = _now()
        spent = Spent(now[0] - self._before[0], now[1] - self._before[1])
        self._before = now
        return spent


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def in_turns(
    alternatives: dict[str, Callable[[], object]], turns: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Run every alternative once per turn.

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

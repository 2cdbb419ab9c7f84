"""Time alternatives fairly on a shared machine: in turns, by the median of ratios within a turn."""

import statistics
import time
from collections.abc import Callable


def in_turns(
    alternatives: dict[str, Callable[[], object]],
    turns: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, float], dict[str, float]]:
    """Run every alternative once per turn.

    Args:
        clock: ``time.process_time`` counts what this process computed, whatever else ran beside it;
            of several threads that wait for each other it says nothing.

    Returns:
        Median seconds of each, and the median over turns of each one's time over the first's.
    """
    for run in alternatives.values():
        run()  # first calls pack weights and fault pages in
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(turns):
        for name, run in alternatives.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    first = next(iter(seconds.values()))
    ratios = {
        name: statistics.median(own / base for own, base in zip(taken, first, strict=True))
        for name, taken in seconds.items()
    }
    return {name: statistics.median(taken) for name, taken in seconds.items()}, ratios

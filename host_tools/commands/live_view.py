"""A run as it is seen while it goes on: in a terminal a view that moves, in a log a line now and
then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 30
"""Characters of the line that the loss draws."""


class View(Protocol):
    """What a run is reported to."""

    def step(self, done: int, loss: float, rate: float) -> None:
        """``done`` steps are done; a smoothed batch loss, and forwards a second."""
        ...

    def evaluated(self, step: int, loss: float, metric: float) -> None:
        """A held-out evaluation after ``step`` steps."""
        ...

    def evaluating(self, done: int, total: int) -> None:
        """So many examples of an evaluation are done."""
        ...


class LineView:
    """A line every few seconds.

    Args:
        say: called with (stage, done, total, figures), as often as it likes.
    """

    def __init__(self, say: Callable[[str, int, int, str], None], total: int, done: int) -> None:
        self._say, self._total = say, total
        say("tuning", done, total, "")

    def step(self, done: int, loss: float, rate: float) -> None:
        from seedtune.runtime.engines.system_memory import resident_bytes

        figures = f"loss {loss:.3f}  {rate:.2f} forwards/s  {_megabytes(resident_bytes())}"
        self._say("tuning", done, self._total, figures)

    def evaluated(self, step: int, loss: float, metric: float) -> None:
        pass  # the follower says it

    def evaluating(self, done: int, total: int) -> None:
        self._say("evaluating", done, total, "")


class LiveView:
    """Bar, loss, held-out figures, speed and memory, drawn again four times a second."""

    def __init__(self, total: int, done: int, metric: str) -> None:
        self._metric = metric
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._steps = self._bars.add_task("tuning", total=total, completed=done)
        self._evaluation = self._bars.add_task("evaluating", total=1, visible=False)
        self._losses: list[float] = []
        self._rate: float | None = None
        self._found: tuple[int, float, float] | None = None

    def step(self, done: int, loss: float, rate: float) -> None:
        self._bars.update(self._steps, completed=done)
        self._losses.append(loss)
        self._rate = rate

    def evaluated(self, step: int, loss: float, metric: float) -> None:
        self._found = step, loss, metric

    def evaluating(self, done: int, total: int) -> None:
        if done < total:
            self._bars.update(self._evaluation, completed=done, total=total, visible=True)
        else:
            self._bars.reset(self._evaluation, visible=False)

    def __rich__(self) -> Any:
        from seedtune.runtime.engines.system_memory import peak_resident_bytes, resident_bytes

        rows = Table.grid(padding=(0, 2))
        if self._losses:
            rows.add_row("loss of the batches", f"{self._losses[-1]:.3f}", sparkline(self._losses))
        if self._found is not None:
            step, loss, metric = self._found
            rows.add_row(
                "held-out rows", f"{loss:.3f}", f"{self._metric} {metric:.4g} at step {step}"
            )
        if self._rate is not None:
            rows.add_row("forwards a second", f"{self._rate:.2f}", "")
        held, peak = resident_bytes(), peak_resident_bytes()
        if held is not None:
            rows.add_row("memory", _megabytes(held), f"at most {_megabytes(peak)}")
        return Group(self._bars, rows)


@contextlib.contextmanager
def live_view(screen: Console, total: int, done: int, metric: str) -> Iterator[View]:
    """A view on the terminal ``screen``, which stands there as it was at its end."""
    view = LiveView(total, done, metric)
    with Live(view, console=screen, refresh_per_second=4):
        yield view


def sparkline(values: list[float]) -> str:
    """The values as a line of blocks, means of equal parts where there are many."""
    parts = min(_WIDTH, len(values))
    ends = [len(values) * part // parts for part in range(parts + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(ends)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"

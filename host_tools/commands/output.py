"""What a command shows: tables for people or one JSON object for machines, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class Output:
    """The streams of one command.

    Args:
        json: print one JSON object instead of text.
    """

    def __init__(self, json: bool) -> None:
        self.json = json
        self._screen = Console(stderr=True, highlight=False)

    @property
    def live(self) -> bool:
        """Whether stderr is a terminal, on which bars can move."""
        return self._screen.is_terminal

    def note(self, text: str) -> None:
        """A line for the person who waits, on stderr."""
        self._screen.print(text, markup=False)

    def result(self, data: dict[str, Any], shown: RenderableType | None = None) -> None:
        """The command's result: ``data`` as JSON, or ``shown`` (by default ``data`` as a table)."""
        if self.json:
            print(json.dumps(_plain(data), ensure_ascii=False))
            return
        # Piped output keeps its width: a table that wraps at 80 columns is hard to read or grep.
        width = None if sys.stdout.isatty() else 160
        Console(highlight=False, width=width, soft_wrap=False).print(
            shown if shown is not None else fields_table(data)
        )

    @contextlib.contextmanager
    def counting(self, what: str, *, size: bool = False) -> Iterator[Callable[[int, int], None]]:
        """A bar for work that reports ``(done, total)``; in bytes if ``size``."""
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn() if size else MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self._screen, disable=not self.live) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """One bar a stage for work that reports ``(stage, done, total)``; off a terminal, a line
        a stage."""
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=self._screen, disable=not self.live) as bars:
            tasks: dict[str, TaskID] = {}

            def report(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                    if not self.live:
                        self.note(stage)
                bars.update(tasks[stage], completed=done, total=total)

            yield report

    @contextlib.contextmanager
    def tuning(self, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
        """A bar for a run of ``total`` steps; reports are ``(steps done, figures)``."""
        columns = [
            TextColumn("tuning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self._screen, disable=not self.live) as bars:
            task = bars.add_task("", total=total, completed=done, figures="")
            yield lambda steps, figures: bars.update(task, completed=steps, figures=figures)


def fields_table(data: dict[str, Any]) -> Table:
    """Names and values in two columns; nested mappings as ``outer.inner``."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flat(data, ""):
        table.add_row(Text(name), Text(_shown(value)))  # Text: brackets are no markup
    return table


def _flat(data: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity; they become null. Paths become text."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)

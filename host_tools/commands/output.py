"""What a command shows: tables for people or one JSON object for machines, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""


class Output:
    """The streams of one command.

    Args:
        json: print one JSON object instead of text.
    """

    def __init__(self, json: bool) -> None:
        self.json = json
        # Its own handle: what silences the libraries takes ``sys.stderr`` away (``export.quiet``).
        self._screen = Console(file=sys.stderr, highlight=False)

    @property
    def live(self) -> bool:
        """Whether stderr is a terminal, on which bars can move."""
        return self._screen.is_terminal

    def note(self, text: str) -> None:
        """A line for the person who waits, on stderr."""
        # Soft: a command or a path that is broken into lines cannot be copied.
        shown = "\n".join(map(printable, text.split("\n")))
        self._screen.print(shown, markup=False, soft_wrap=True)

    def result(self, data: dict[str, Any], shown: RenderableType | None = None) -> None:
        """The command's result: ``data`` as JSON, or ``shown`` (by default ``data`` as a table)."""
        if self.json:
            print(json_line(plain(data)))
            return
        # Piped output keeps its width: a table that wraps at 80 columns is hard to read or grep.
        width = None if sys.stdout.isatty() else 160
        Console(highlight=False, width=width, soft_wrap=False).print(
            shown if shown is not None else fields_table(data)
        )

    @contextlib.contextmanager
    def counting(self, what: str, *, size: bool = False) -> Iterator[Callable[[int, int], None]]:
        """A bar for work that reports ``(done, total)``; in bytes if ``size``."""
        with self._bars(TaskProgressColumn() if size else MofNCompleteColumn()) as report:
            yield lambda done, total: report(what, done, total, "")

    @contextlib.contextmanager
    def checking(self) -> Iterator[Callable[[int, int], None]]:
        """The same while a bundle is opened, gone when it is: most are small."""
        with self._bars(TaskProgressColumn(), passing=True) as report:
            yield lambda done, total: report("checking the bundle", done, total, "")

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The same for work that does not report how far it is: named at once, and timed."""
        with self._bars(announce=True) as report:
            report(what, 0, 1, "")
            yield
            report(what, 1, 1, "")

    @contextlib.contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """One bar a stage for work that reports ``(stage, done, total)``."""
        with self._bars(MofNCompleteColumn(), announce=True) as report:
            yield lambda stage, done, total: report(stage, done, total, "")

    @contextlib.contextmanager
    def following(self, done: int) -> Iterator[Callable[[str, int, int, str], None]]:
        """A bar a stage for work that reports ``(stage, done, total, figures)`` and may go back and
        forth between stages; ``done`` was done before."""
        columns = MofNCompleteColumn(), TextColumn("{task.fields[figures]}")
        with self._bars(*columns, before=done) as report:
            yield report

    @contextlib.contextmanager
    def _bars(
        self,
        *columns: ProgressColumn,
        announce: bool = False,
        passing: bool = False,
        before: int = 0,
    ) -> Iterator[Callable[[str, int, int, str], None]]:
        """Bars by name, gone at the end if ``passing``; off a terminal lines."""
        if not self.live:
            with self._lines(announce, before) as report:
                yield report
            return
        shown = [TextColumn("{task.description}"), BarColumn(), *columns]
        shown += [TimeElapsedColumn(), TimeRemainingColumn()]
        with Progress(*shown, console=self._screen, transient=passing) as bars:
            tasks: dict[str, TaskID] = {}

            def move(name: str, done: int, total: int, figures: str) -> None:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, completed=done, total=total, figures=figures)
                elif done < bars.tasks[tasks[name]].completed:  # it begins anew
                    bars.reset(tasks[name])
                bars.update(tasks[name], completed=done, total=total, figures=figures)

            yield move

    @contextlib.contextmanager
    def _lines(
        self, announce: bool, before: int = 0
    ) -> Iterator[Callable[[str, int, int, str], None]]:
        """A line every ``EVERY`` seconds, also where nothing is reported for long, and one at the
        start of each stage where it is to ``announce`` them. ``before`` was done already."""
        said: dict[str, float] = {}  # of a stage: when a line was written last
        first: dict[str, tuple[float, int]] = {}  # when its first work was done, and how much
        now_at = ("", 0, 1)
        last = began = time.monotonic()

        def say(line: str) -> None:
            nonlocal last
            last = time.monotonic()
            self.note(line.rstrip())

        def report(name: str, done: int, total: int, figures: str) -> None:
            nonlocal now_at, began
            now = time.monotonic()
            if name != now_at[0]:
                began = now
            now_at = name, done, total
            if name not in said or done < first.get(name, (0.0, 0))[1]:  # it begins, or anew
                if announce and name not in said:
                    say(name)
                said[name] = now
                first.pop(name, None)
            if name not in first and done > before:
                # What comes before takes longer than the rest: a program is loaded, threads chosen.
                first[name] = (now, done)
            since, there = first.get(name, (now, done))
            if now - said[name] >= EVERY and done < total:
                left = f"after {now - began:.0f} s"
                if done > there:
                    left = f"{(now - since) / (done - there) * (total - done):.0f} s left"
                say(f"{name}: {done / total:.0%}, {left}  {figures}")
                said[name] = now

        def beat() -> None:
            while not over.wait(EVERY / 4):
                name, done, total = now_at
                now = time.monotonic()
                if name and done < total and now - max(last, began) >= 1.5 * EVERY:
                    say(f"{name}: {done / total:.0%} after {now - began:.0f} s")

        over = threading.Event()
        threading.Thread(target=beat, daemon=True).start()
        try:
            yield report
        finally:
            over.set()


def json_line(data: Any) -> str:
    """JSON on one line, readable, but for what ``printable`` would not show either."""
    # What is not printable stands inside strings, where JSON's own escapes mean the same.
    text = json.dumps(data, ensure_ascii=False)
    return _escaped(text, lambda hidden: json.dumps(hidden)[1:-1])


def printable(text: str) -> str:
    """``text`` with whatever a terminal would obey or hide (control characters, escape sequences,
    marks that turn the direction of text) written as Python writes it, such as ``\\x1b``: texts of
    a file from elsewhere must not move the cursor, set a title or hide a part of themselves."""
    return _escaped(text, lambda hidden: hidden.encode("unicode_escape").decode())


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else escape(each) for each in text)


def fields_table(data: dict[str, Any]) -> Table:
    """Names and values in two columns; nested mappings as ``outer.inner``."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flat(data, ""):
        # Text: brackets are no markup.
        table.add_row(Text(printable(name)), Text(printable(_shown(name, value))))
    return table


def _flat(data: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value, start=1)}
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (dict, list, tuple)):
        # An empty object, or a list; lists in one, such as shapes, stand apart by their comma.
        return ", ".join(_item(item) for item in value) or "none"
    if name.rpartition(".")[2].endswith("bytes") and isinstance(value, int) and value >= 10**6:
        return f"{value / 1e6:,.0f} MB"
    return str(value)


def _item(value: Any) -> str:
    """An item of a list: shapes and pairs as ``3 x 64``."""
    if isinstance(value, (list, tuple)):
        return " x ".join(_shown("", part) for part in value)
    return _shown("", value)


def plain(value: Any) -> Any:
    """JSON has no NaN or infinity; they become null. Paths become text."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)

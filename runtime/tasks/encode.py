"""Rows of data as a task's examples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError, warn
from .rows import Row, read_rows
from .task import Encoded, Task, TooLong
from .tokenising import Watch, watched

Rows = str | Path | Iterable[Mapping[str, Any]]
"""A file of rows (see ``read_rows``), or the rows themselves as dicts."""
Kind = TypeVar("Kind")
_SHOWN = 3


def encode_rows(task: Task, rows: Rows, *, labelled: bool = True) -> list[Encoded]:
    """Encode rows: dicts, ``Row`` objects or a file of them (see ``read_rows``).

    Args:
        labelled: False leaves the label out, for prediction.

    Raises:
        DataError: see ``read_rows`` and ``Task.encode``; names the row by its ``where``, or by its
            number from 1, and of rows that are too long how many there are.
    """
    return _each(task, rows, lambda row: task.encode(row, row.where, labelled=labelled))


def encode_questions(task: Task, rows: Rows) -> list[Encoded | list[int]]:
    """Encode rows for prediction: as examples without a label, but a row whose answer is to be
    written as the tokens that it is to go on from.

    Raises:
        DataError: as ``encode_rows``.
    """

    def encode(row: Row) -> Encoded | list[int]:
        prompt = task.prompt(row, row.where)
        return task.encode(row, row.where, labelled=False) if prompt is None else prompt

    return _each(task, rows, encode)


def _each(task: Task, rows: Rows, encode: Callable[[Row], Kind]) -> list[Kind]:
    given, names, empty = read_rows(rows), task.template.names, []
    long: list[tuple[str, TooLong]] = []

    def work(watch: Watch) -> list[Kind]:
        found = []
        for row in given:
            watch.at(row.where)
            try:
                found.append(encode(row))
            except TooLong as error:
                long.append((row.where, error))
                continue
            if names and not any(str(row[name]).strip() for name in names):
                empty.append(row.where)
        return found

    examples = watched(work, "rows")
    if len(long) == 1:
        raise long[0][1]
    if long:
        shown = ", ".join(where for where, _ in long[:_SHOWN])
        more = ", ..." if len(long) > _SHOWN else ""
        longest = max(long, key=lambda each: each[1].tokens)[1]
        what = f"{len(long)} of {len(given)} rows are too long ({shown}{more})"
        raise TooLong(what, longest.tokens, longest.bound)
    if empty:
        more = f" and {len(empty) - 1} more rows" if len(empty) > 1 else ""
        warn(
            f"{empty[0]}{more}: no text in {', '.join(task.template.names)}; leave such rows out: "
            "they teach and measure the template alone"
        )
    return examples


def need_labels(examples: Sequence[Encoded], what: str) -> None:
    """Refuse examples that were encoded for prediction, where each must have its right answer.

    Raises:
        DataError: one has no label; names it by ``what`` and its number from 1.
    """
    for number, example in enumerate(examples, 1):
        if example.gold < 0:
            raise DataError(
                f"{what} {number}: has no label, as it was encoded for prediction; encode it with "
                "its label"
            )

"""Rows of data as a task's examples."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, warn
from .rows import read_rows
from .task import Encoded, Task
from .tokenising import Watch, watched


def encode_rows(
    task: Task, rows: str | Path | Iterable[Mapping[str, Any]], *, labelled: bool = True
) -> list[Encoded]:
    """Encode rows: dicts, ``Row`` objects or a file of them (see ``read_rows``).

    Args:
        labelled: False leaves the label out, for prediction.

    Raises:
        DataError: see ``read_rows`` and ``Task.encode``; names the row by its ``where``, or by its
            number from 1.
    """
    given, names, empty = read_rows(rows), task.template.names, []

    def encode(watch: Watch) -> list[Encoded]:
        examples = []
        for row in given:
            watch.at(row.where)
            examples.append(task.encode(row, row.where, labelled=labelled))
            if names and not any(str(row[name]).strip() for name in names):
                empty.append(row.where)
        return examples

    examples = watched(encode, "rows")
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

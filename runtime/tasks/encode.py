"""Rows of data as a task's examples."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import warn
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

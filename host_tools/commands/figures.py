"""An evaluation as commands show it: its figures and, of answers, how often each was right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from seedtune.runtime.errors import warn

from .output import fields_table, printable

if TYPE_CHECKING:
    from seedtune.runtime.scoring.evaluation import Confusion, Evaluation


def figures_of(found: Evaluation, metric: str) -> dict[str, Any]:
    """Loss and metric; where an answer was chosen, macro-F1, too."""
    figures: dict[str, Any] = {"loss": found.loss, metric: found.metric}
    if found.confusion is not None:
        figures["macro_f1"] = found.confusion.macro_f1
    return figures


def answers_of(found: Evaluation) -> dict[str, Any]:
    """What the rows' right answers are like, and counts by right and then by given answer; empty
    where nothing is chosen. Warns where always giving one answer does as well."""
    if found.confusion is None:
        return {}
    if found.confusion.warning is not None:
        warn(found.confusion.warning)
    return {
        "most_frequent": {
            "answer": found.confusion.most_frequent,
            "share": found.confusion.most_frequent_share,
        },
        "counts": _counts(found.confusion),
    }


def shown(result: dict[str, Any]) -> RenderableType:
    """A result for people, its ``counts`` as a table behind the other fields: a row for each right
    answer, a column for each that was given."""
    counts = result.get("counts")
    if not counts:
        return fields_table(result)
    rest = {name: value for name, value in result.items() if name != "counts"}
    return Group(fields_table(rest), "", _counts_table(counts))


def _counts_table(counts: dict[str, dict[str, int]]) -> Table:
    given = list(dict.fromkeys(name for row in counts.values() for name in row))
    table = Table(box=None, pad_edge=False)
    table.add_column("right answer", no_wrap=True)
    for name in given:
        table.add_column(Text(f"given {printable(name)}"), justify="right")
    for right, row in counts.items():
        table.add_row(Text(printable(right), "bold"), *(str(row[name]) for name in given))
    return table


def _counts(confusion: Confusion) -> dict[str, dict[str, int]]:
    given = [*confusion.labels]
    if any(row[-1] for row in confusion.counts):
        given.append("(none)")
    return {
        label: dict(zip(given, row, strict=False))
        for label, row in zip(confusion.labels, confusion.counts, strict=True)
    }

"""The committed table of ``bench senders``, summed up over people."""

from __future__ import annotations

import math
import statistics
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from ..contenders.people_methods import METHODS, Method
from .rows import Row, Rows

FILE = "senders"
HARM = 0.005
"""Log-perplexity: a person is helped or harmed by more than this, half a per cent."""
_ENDED = Method("", "start-int4")
"""A method that is no longer run, whose rows stay."""


def summarise_senders(rows: Rows) -> dict[str, Any]:
    """Means over people by method and messages.

    Returns:
        ``rows``; ``table``: for each method and number of messages ``people``; medians and means of
        what they had at the ``start`` and ``after``: ``perplexity`` (geometric mean);
        ``gain`` (mean fall of log-perplexity) and its ``least``; ``other_rise`` (mean and
        ``largest`` relative rise of perplexity on other text); ``helped`` and ``harmed`` (people
        whose log-perplexity fell or rose by more than ``HARM``); ``cpu_seconds`` and ``seconds``
        (means), ``peak_rss_bytes`` (largest).
    """
    starts = {
        (row["method"], row["sender"]): row
        for row in rows.values()
        if not METHODS.get(row["method"], _ENDED).learns
    }
    cells: dict[tuple[int, str], list[tuple[Row, Row]]] = {}
    for row in rows.values():
        method = METHODS.get(row["method"], _ENDED)
        start = starts.get((method.start, row["sender"]))
        if method.learns and start is not None:
            key = (row["settings"]["messages"], row["method"])
            cells.setdefault(key, []).append((start, row))
    order = [*METHODS, *sorted({method for _, method in cells} - set(METHODS))]
    keys = sorted(cells, key=lambda key: (key[0], order.index(key[1])))
    table = [
        {"messages": messages, "method": method, **_over_people(cells[messages, method])}
        for messages, method in keys
    ]
    return {"rows": len(rows), "table": table}


def show_senders(summary: dict[str, Any]) -> RenderableType:
    """For people: one line a method and number of messages."""
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    for heading in (
        "messages", "people", "perplexity", "gain", "other", "helped", "harmed",
        "CPU s", "MiB",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in summary["table"]:
        start, after = row["start"], row["after"]
        table.add_row(
            row["method"],
            str(row["messages"]),
            str(row["people"]),
            f"{start['perplexity']:.1f} to {after['perplexity']:.1f}",
            f"{row['gain']['mean']:.3f}",
            f"{100 * row['other_rise']['mean']:+.1f} %",
            str(row["helped"]),
            str(row["harmed"]),
            f"{row['cpu_seconds']:.0f}",
            f"{row['peak_rss_bytes'] / 2**20:.0f}",
        )
    return table


def _over_people(pairs: list[tuple[Row, Row]]) -> dict[str, Any]:
    gains = [_log(start, "test") - _log(row, "test") for start, row in pairs]
    rises = [math.expm1(_log(row, "other") - _log(start, "other")) for start, row in pairs]
    return {
        "people": len(pairs),
        "start": _means([start for start, _ in pairs]),
        "after": _means([row for _, row in pairs]),
        "gain": {"mean": statistics.fmean(gains), "least": min(gains)},
        "other_rise": {"mean": statistics.fmean(rises), "largest": max(rises)},
        "helped": sum(gain > HARM for gain in gains),
        "harmed": sum(gain < -HARM for gain in gains),
        "seconds": statistics.fmean(row["seconds"] for _, row in pairs),
        "cpu_seconds": statistics.fmean(row["cpu_seconds"] for _, row in pairs),
        "peak_rss_bytes": max(row["peak_rss_bytes"] for _, row in pairs),
    }


def _means(rows: list[Row]) -> dict[str, float]:
    return {"perplexity": math.exp(statistics.fmean(_log(row, "test") for row in rows))}


def _log(row: Row, text: str) -> float:
    return math.log(row[text]["perplexity"])

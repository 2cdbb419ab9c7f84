"""The summary of ``bench senders`` for people: one line a method and number of messages."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table


def show_senders(summary: dict[str, Any]) -> RenderableType:
    """A table of what ``senders.summarise_senders`` gives."""
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    for heading in (
        "messages", "people", "perplexity", "gain", "top 1", "top 3", "other", "helped", "harmed",
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
            *(f"{100 * start[k]:.1f} to {100 * after[k]:.1f} %" for k in ("top1", "top3")),
            f"{100 * row['other_rise']['mean']:+.1f} %",
            str(row["helped"]),
            str(row["harmed"]),
            f"{row['cpu_seconds']:.0f}",
            f"{row['peak_rss_bytes'] / 2**20:.0f}",
        )
    return table

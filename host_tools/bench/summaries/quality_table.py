"""The summary of ``bench quality`` for people: one line a task and method."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ...commands.output import fields_table


def show_quality(summary: dict[str, Any]) -> RenderableType:
    """Tables of what ``quality.summarise_quality`` gives."""
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "method", "seeds", "forwards", "last", "best", "lr", "s/step", "MiB"):
        table.add_column(heading, justify="left" if heading in ("task", "method") else "right")
    for task, methods in summary["tasks"].items():
        for method, found in methods.items():
            scale = 1 if found["metric"] == "perplexity" else 100
            unit = "" if scale == 1 else " %"
            last = {name: scale * value for name, value in found["last"].items()}
            table.add_row(
                task,
                method,
                str(found["seeds"]),
                str(found["forwards"]),
                f"{last['mean']:.1f} ± {last['deviation']:.1f}{unit}",
                f"{scale * found['best_of_mean']:.1f} at {found['best_at_forwards']}",
                "-" if found["lr"] is None else str(found["lr"]),
                f"{found['step_seconds']['mean']:.2f}" if "step_seconds" in found else "-",
                f"{found['peak_rss_bytes'] / 2**20:.0f}",
            )
    rest = {name: value for name, value in summary.items() if name != "tasks"}
    return Group(table, "", fields_table(rest))

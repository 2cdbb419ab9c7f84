"""The table of ``bench paper`` for people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ...commands.output import fields_table

_CLAIMS = {
    "masks": "1 what is tuned",
    "bits": "2 weights around it",
    "text": "3 chosen on",
    "cost": "4 cost",
}


def show_paper(summary: dict[str, Any]) -> RenderableType:
    """Of what ``paper.bench_paper`` gives."""
    table = Table(box=None, pad_edge=False)
    for heading in ("claim", "row", "forwards", "seeds", "accuracy or ratio"):
        table.add_column(heading)
    for name, title in _CLAIMS.items():
        for line in summary["claims"][name]:
            if "figure" in line:
                table.add_row(title, line["what"], "", "", f"{line['figure']:.2f}")
                continue
            accuracy = {key: 100 * value for key, value in line["accuracy"].items()}
            spread = f" ± {accuracy['deviation']:.1f}" if line["seeds"] > 1 else ""
            table.add_row(
                title,
                line["what"],
                str(line["forwards"]),
                str(line["seeds"]),
                f"{accuracy['mean']:.1f}{spread} %",
            )
    rest = {name: value for name, value in summary.items() if name not in ("claims", "missing")}
    lacks = [f"{name}: {reason}" for name, reason in summary["missing"].items()]
    return Group(table, "", fields_table(rest), *lacks)

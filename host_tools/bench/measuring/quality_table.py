"""The committed table of ``bench quality``, summed up and shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from ...commands.output import fields_table
from .results_files import Row, Rows, settings_hash

HEADLINE = {"sst2": "sst2", "sms": "sms-spam"}
"""Tasks of the figures in the summary, by the short name that they have there."""
DECIDING = "sst2"
OURS = "int4-"
TEST_ROWS = 300
"""That a task is judged on unless asked otherwise."""


@dataclass(frozen=True)
class Group:
    """Rows that differ in their seed alone."""

    rows: tuple[Row, ...]

    @property
    def method(self) -> str:
        return str(self.rows[0]["method"])

    @property
    def task(self) -> str:
        return str(self.rows[0]["task"])

    @property
    def higher_is_better(self) -> bool:
        """Accuracy is, perplexity is not."""
        return bool(self.rows[0]["metric"] != "perplexity")

    @property
    def curve(self) -> dict[int, dict[str, float]]:
        """Mean and deviation over seeds of the metric, by forwards, where all seeds have them."""
        by_seed = [{at["forwards"]: at["accuracy"] for at in row["curve"]} for row in self.rows]
        common = sorted(set.intersection(*(set(points) for points in by_seed)))
        return {at: mean_and_deviation([points[at] for points in by_seed]) for at in common}

    @property
    def best(self) -> tuple[int, float]:
        """Forwards and mean metric of the best point of the curve, the first if several tie."""
        sign = -1 if self.higher_is_better else 1
        at, found = min(self.curve.items(), key=lambda item: (sign * item[1]["mean"], item[0]))
        return at, found["mean"]

    @property
    def last(self) -> dict[str, float]:
        """Mean and deviation of the last point."""
        return self.curve[max(self.curve)]

    def forwards_to(self, target: float) -> int | None:
        """Forwards of the first point whose mean is at least as good; None if none is."""
        sign = 1 if self.higher_is_better else -1
        reached = [at for at, found in self.curve.items() if sign * (found["mean"] - target) >= 0]
        return min(reached, default=None)

    def figures(self) -> dict[str, Any]:
        """What the summary says of it."""
        at, best = self.best
        found = {
            "seeds": len(self.rows),
            "metric": self.rows[0]["metric"],
            "last": self.last,
            "best_of_mean": best,
            "best_at_forwards": at,
            "forwards": max(self.curve),
            "settings": settings_hash(self.rows[0]["settings"]),
            "lr": self.rows[0]["settings"].get("lr"),
            "peak_rss_bytes": max(row["peak_rss_bytes"] for row in self.rows),
        }
        if "step_seconds" in self.rows[0]:
            found["step_seconds"] = mean_and_deviation([row["step_seconds"] for row in self.rows])
        generic = [row["generic_perplexity"] for row in self.rows if "generic_perplexity" in row]
        if generic:
            rises = [each["after"] / each["before"] - 1 for each in generic]
            found["generic_perplexity_rise"] = mean_and_deviation(rises)
        return found


def mean_and_deviation(numbers: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single number)."""
    return {
        "mean": statistics.fmean(numbers),
        "deviation": statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
    }


def chosen_groups(rows: Iterable[Row]) -> dict[tuple[str, str], Group]:
    """One group for each (method, task): most seeds, then most forwards, then the best last mean.

    Short runs of a search for a learning rate so stay out of the figures. A task that was judged on
    another number of rows is one of its own, ``TASK, N rows``.
    """
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        judged_on = row["settings"].get("test_rows", TEST_ROWS)
        task = row["task"] + (f", {judged_on} rows" if judged_on != TEST_ROWS else "")
        found.setdefault((row["method"], task, settings_hash(row["settings"])), []).append(row)
    chosen: dict[tuple[str, str], Group] = {}
    ranks: dict[tuple[str, str], tuple[float, ...]] = {}
    for (method, task, _), members in sorted(found.items()):
        group = Group(tuple(members))
        sign = 1 if group.higher_is_better else -1
        rank = (len(members), max(group.curve), sign * group.last["mean"])
        if (method, task) not in ranks or rank > ranks[method, task]:
            chosen[method, task], ranks[method, task] = group, rank
    return chosen


def summarise_quality(rows: Rows) -> dict[str, Any]:
    """Mean and deviation over seeds, and how our best setting stands against the baselines.

    Returns:
        ``tasks`` (by task and method, see ``Group.figures``); ``forwards_ratio_to_mezo_best``:
        forwards after which our best method's mean SST-2 accuracy reaches the best that full
        float32 MeZO's gets to, over those that MeZO takes to it (null if it never does);
        ``sst2_gap_to_lora`` and ``sms_gap_to_lora``: points of last accuracy that we are behind;
        ``sst2_lead_over_mezo`` and ``sms_lead_over_mezo``: points that we are ahead; ``ours``, the
        method meant, and ``tasks_below_start``, where it ended worse than it began.
        What no row tells yet is null.
    """
    groups = chosen_groups(rows.values())
    tasks: dict[str, dict[str, Any]] = {}
    for (method, task), group in groups.items():
        tasks.setdefault(task, {})[method] = group.figures()
    ours = _best_of_ours(groups)
    name = ours.method if ours else None
    summary: dict[str, Any] = {
        "rows": len(rows),
        "ours": name,
        "forwards_ratio_to_mezo_best": _forwards_ratio(ours, groups.get(("mezo-fp32", DECIDING))),
    }
    for short, task in HEADLINE.items():
        for figure, baseline in (("gap_to_lora", "lora"), ("lead_over_mezo", "mezo-fp32")):
            mine, other = groups.get((name or "", task)), groups.get((baseline, task))
            sign = -1 if baseline == "lora" else 1
            summary[f"{short}_{figure}"] = (
                sign * 100 * (mine.last["mean"] - other.last["mean"]) if mine and other else None
            )
    summary["tasks_below_start"] = sorted(
        task for (method, task), group in groups.items() if method == name and _below_start(group)
    )
    return {**summary, "tasks": tasks}


def _best_of_ours(groups: dict[tuple[str, str], Group]) -> Group | None:
    """The int4 method that does best on the deciding task: most seeds, then the best last mean.

    It stands for us everywhere: nobody chooses a method by task on a device.
    """
    mine = [
        group
        for (method, task), group in groups.items()
        if task == DECIDING and method.startswith(OURS)
    ]
    return max(mine, key=lambda group: (len(group.rows), group.last["mean"]), default=None)


def _forwards_ratio(ours: Group | None, mezo: Group | None) -> float | None:
    if ours is None or mezo is None:
        return None
    at, target = mezo.best
    reached = ours.forwards_to(target)
    return None if reached is None or at == 0 else reached / at


def _below_start(group: Group) -> bool:
    change = group.last["mean"] - group.curve[0]["mean"]
    return change < 0 if group.higher_is_better else change > 0


def show_quality(summary: dict[str, Any]) -> RenderableType:
    """For people: one line a task and method, and what follows from them."""
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
    return Lines(table, "", fields_table(rest))

"""The committed table of ``bench quality``: rows by their key, merged, summed up and drawn."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError

from ..measuring.results_files import read_figures, write_figures
from ..measuring.tuning_run import mean_and_deviation

FILE = "quality"
HEADLINE = {"sst2": "sst2", "sms": "sms-spam"}
"""Tasks of the figures in the summary, by the short name that they have there."""
DECIDING = "sst2"
OURS = "int4-"
TEST_ROWS = 300
"""That a task is judged on unless asked otherwise."""
_DIVERGED = 1.2
"""Perplexities above so many times the start's are drawn there."""

Row = dict[str, Any]
Rows = dict[str, Row]


def row_key(method: str, task: str, seed: int, settings: dict[str, Any]) -> str:
    """``method/task/seed/hash of the settings``."""
    return f"{method}/{task}/{seed}/{settings_hash(settings)}"


def settings_hash(settings: dict[str, Any]) -> str:
    """Eight hex digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def read_rows(folder: Path, name: str = FILE) -> Rows:
    """Rows of the results ``name`` in ``folder``; none if there is no file.

    Raises:
        SeedtuneError: the file is not one that ``merge_rows`` wrote.
    """
    figures = read_figures(name, folder)
    if figures is None:
        return {}
    if "rows" not in figures:
        raise SeedtuneError(f"{folder / name}.json: holds no table of results")
    rows: Rows = figures["rows"]
    return rows


def merge_rows(rows: Rows, folder: Path, name: str = FILE) -> None:
    """Add ``rows`` to the results ``name`` in ``folder``; a row of the same key is replaced, none
    is lost.

    Benchmarks that run at the same time wait for one another. Each row names its own ``machine``;
    the table's is that of the last merge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        merged = read_rows(folder, name) | rows
        write_figures(name, {"rows": dict(sorted(merged.items()))}, folder)
    finally:
        os.close(lock)


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
    ours = best_of_ours(groups)
    name = ours.method if ours else None
    summary: dict[str, Any] = {
        "rows": len(rows),
        "ours": name,
        "forwards_ratio_to_mezo_best": _forwards_ratio(ours, groups.get(("mezo-fp32", DECIDING))),
    }
    for short, task in HEADLINE.items():
        for figure, baseline in (("gap_to_lora", "lora"), ("lead_over_mezo", "mezo-fp32")):
            mine, other = groups.get((name or "", task)), groups.get((baseline, task))
            ahead = mine and other and 100 * (mine.last["mean"] - other.last["mean"])
            sign = -1 if baseline == "lora" else 1
            summary[f"{short}_{figure}"] = None if ahead is None else sign * ahead
    summary["tasks_below_start"] = sorted(
        task for (method, task), group in groups.items() if method == name and _below_start(group)
    )
    return {**summary, "tasks": tasks}


def best_of_ours(groups: dict[tuple[str, str], Group], task: str = DECIDING) -> Group | None:
    """The int4 method that does best on a task: most seeds, then the best last mean.

    That of the deciding task stands for us wherever an answer is chosen: nobody chooses a method by
    task on a device.
    """
    mine = [
        group for (method, on), group in groups.items() if on == task and method.startswith(OURS)
    ]

    def order(group: Group) -> tuple[int, float]:
        sign = 1 if group.higher_is_better else -1
        return len(group.rows), sign * group.last["mean"]

    return max(mine, key=order, default=None)


def _forwards_ratio(ours: Group | None, mezo: Group | None) -> float | None:
    if ours is None or mezo is None:
        return None
    at, target = mezo.best
    reached = ours.forwards_to(target)
    return None if reached is None or at == 0 else reached / at


def _below_start(group: Group) -> bool:
    change = group.last["mean"] - group.curve[0]["mean"]
    return change < 0 if group.higher_is_better else change > 0


def draw_quality(rows: Rows, folder: Path) -> None:
    """Metric over forwards, a panel a task, mean and deviation over seeds, as ``quality.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = chosen_groups(rows.values())
    tasks = list(dict.fromkeys(task for _, task in groups))
    if not tasks:
        return
    methods = sorted({method for method, _ in groups})
    colours = {method: f"C{n % 10}" for n, method in enumerate(methods)}
    height = (len(tasks) + 1) // 2
    figure: Figure = Figure(figsize=(12, 4 * height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(height, 2, squeeze=False).reshape(-1)
    for panel, task in zip(panels, tasks, strict=False):
        for method in methods:
            group = groups.get((method, task))
            if group is None:
                continue
            scale = 100 if group.higher_is_better else 1
            unit = "accuracy (%)" if group.higher_is_better else "perplexity"
            panel.set_ylabel(unit)
            at = list(group.curve)
            mean = [scale * found["mean"] for found in group.curve.values()]
            spread = [scale * found["deviation"] for found in group.curve.values()]
            colour = colours[method]
            if len(at) == 1:
                panel.axhline(mean[0], color=colour, linestyle=":", label=method)
                continue
            low = [value - width for value, width in zip(mean, spread, strict=True)]
            high = [value + width for value, width in zip(mean, spread, strict=True)]
            if not group.higher_is_better:  # one that diverges would flatten all others
                most = _DIVERGED * mean[0]
                mean, low, high = ([min(y, most) for y in each] for each in (mean, low, high))
            panel.plot(at, mean, "o-", color=colour, markersize=3, label=method)
            panel.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_title(task, fontsize="medium")
        panel.set_xlabel("forward passes (a first-order step counts 3)")
        panel.legend(fontsize="x-small")
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    try:
        figure.savefig(folder / f"{FILE}.png", format="png", dpi=100)
    except OSError as error:
        raise SeedtuneError(f"{folder}: cannot be written: {error.strerror or error}") from error

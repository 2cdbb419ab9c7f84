"""``seedtune bench first_order``: wall-clock and memory to an accuracy or a perplexity, ours
against LoRA's.

A step of each is timed in turns on the same batch and CPU. How many steps each needs, and the peak
memory of its process, come from the committed table of ``bench quality``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.journal.start import Start
from seedtune.runtime.tuning.tuner import Tuner

from ..data.named_tasks import load_task
from .contenders.float_task import FloatTask
from .contenders.lora import FORWARDS_A_STEP, Adapter
from .contenders.task_methods import resolved_settings, tuner_settings
from .measuring.results_files import RESULTS, write_figures
from .measuring.timing import in_turns
from .programs.default_bundle import default_bundle, model_source
from .summaries.quality import DECIDING, Group, best_of_ours, chosen_groups
from .summaries.rows import read_rows


def bench_first_order(
    *,
    turns: int = 7,
    tasks: Sequence[str] = (DECIDING, "chat"),
    bundle: Path | None = None,
    threads: int | None = None,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Time both on each task; the goal is what our best setting ends with, mean over seeds.

    Our steps are timed half way to it, since what a readout has to fit grows with the steps.

    Args:
        bundle: by default the quickstart's.

    Returns:
        ``tasks``: for each ``metric`` and ``goal``; ``int4`` and ``lora`` with ``steps`` to it,
        ``step_seconds``, ``seconds`` and ``peak_rss_bytes``; ``time_over_lora`` and
        ``memory_over_lora``; ``on_the_way``: for each point that LoRA was evaluated at and both
        reached, ``goal``, the seconds of both and ``time_over_lora``.

    Raises:
        SeedtuneError: the table lacks rows of ours or LoRA's, or LoRA never gets there.
    """
    groups = chosen_groups(read_rows(results).values())
    found = {task: _on(task, groups, bundle, threads, turns, results) for task in tasks}
    return write_figures("first_order", {"tasks": found}, results)


def _on(
    task: str,
    groups: dict[tuple[str, str], Group],
    bundle: Path | None,
    threads: int | None,
    turns: int,
    results: Path,
) -> dict[str, Any]:
    ours, lora = best_of_ours(groups, task), groups.get(("lora", task))
    if ours is None or lora is None:
        raise SeedtuneError(
            f"{results}/quality.json: needs rows of lora and of an int4 method on {task}; "
            "run `seedtune bench quality` first"
        )
    goal = ours.last["mean"]
    probes = resolved_settings({**ours.rows[0]["settings"], "seed": 0}).options.forwards
    steps = {
        "int4": _needed(goal, ours) / probes,
        "lora": _needed(goal, lora) / FORWARDS_A_STEP,
    }
    seconds = _step_seconds(task, ours, lora, bundle, threads, turns, int(steps["int4"] / 2))
    found: dict[str, Any] = {
        name: {
            "method": group.method,
            "steps": steps[name],
            "step_seconds": seconds[name],
            "seconds": steps[name] * seconds[name],
            "peak_rss_bytes": max(row["peak_rss_bytes"] for row in group.rows),
        }
        for name, group in (("int4", ours), ("lora", lora))
    }
    return {
        "metric": ours.rows[0]["metric"],
        "goal": goal,
        **found,
        "time_over_lora": found["int4"]["seconds"] / found["lora"]["seconds"],
        "memory_over_lora": found["int4"]["peak_rss_bytes"] / found["lora"]["peak_rss_bytes"],
        "on_the_way": _on_the_way(ours, lora, seconds["int4"] / probes, seconds["lora"]),
    }


def _needed(goal: float, group: Group) -> float:
    """Forwards to ``goal``, as ``_forwards_to`` has them.

    Raises:
        SeedtuneError: it is never reached.
    """
    reached = _forwards_to(goal, group)
    if reached is None:
        raise SeedtuneError(
            f"{group.method} never reaches {goal:.3f} on {group.task}; add longer runs with "
            "`seedtune bench quality`"
        )
    return reached


def _forwards_to(goal: float, group: Group) -> float | None:
    """Forwards until the mean is as good as ``goal``: of what lies between two evaluations, where
    the line between them gets there. None if none is as good."""
    last = group.forwards_to(goal)
    if last is None:
        return None
    before = max((at for at in group.curve if at < last), default=last)
    start, end = (group.curve[at]["mean"] for at in (before, last))
    return last if start == end else before + (last - before) * (goal - start) / (end - start)


def _on_the_way(
    ours: Group, lora: Group, forward_seconds: float, lora_step_seconds: float
) -> list[dict[str, float]]:
    rows = []
    for forwards, reached in lora.curve.items():
        mine = _forwards_to(reached["mean"], ours)
        if forwards and mine is not None:
            int4_seconds = mine * forward_seconds
            lora_seconds = forwards / FORWARDS_A_STEP * lora_step_seconds
            rows.append(
                {
                    "goal": reached["mean"],
                    "int4_seconds": int4_seconds,
                    "lora_seconds": lora_seconds,
                    "time_over_lora": int4_seconds / lora_seconds,
                }
            )
    return rows


def _step_seconds(
    task: str,
    ours: Group,
    lora: Group,
    bundle: Path | None,
    threads: int | None,
    turns: int,
    before: int,
) -> dict[str, float]:
    """Median of a step of each, ours after so many ``before``."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    settings = {**lora.rows[0]["settings"], "seed": 0}
    source, data = model_source(settings["model"]), load_task(task)
    opened = open_bundle(bundle or default_bundle(settings["model"]))
    cell = FloatTask.of(source, data, settings)
    its = tuner_settings({**ours.rows[0]["settings"], "seed": 0})
    adapter = Adapter(cell, settings)
    with (
        open_engine(opened, threads or "auto") as engine,
        tempfile.TemporaryDirectory() as folder,
        Tuner(
            engine, Start.of(opened), cell.task, cell.train, folder=folder, settings=its
        ) as tuner,
    ):
        for _ in range(before):
            tuner.step()
        return in_turns({"int4": tuner.step, "lora": lambda: adapter.step(0)}, turns)[0]

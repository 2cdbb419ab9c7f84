"""``seedtune bench paper``: what the source paper claims, on what runs here.

Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity" (arXiv 2406.02913): (1) tuning
0.1 % of the weights by forward passes does as well as tuning all of them, if the 0.1 % are the
sensitive ones; (2) 4-bit weights around them cost little; (3) public text finds them as well as the
task's own; (4) a step is faster, and takes less memory.

It measures nothing: runs are cells of ``bench quality``, at equal forwards and by seeds alone, and
figures of ``bench senders`` and ``bench device`` stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from ..commands.output import fields_table
from .contenders.task_methods import MASKS
from .measuring.quality_table import DECIDING, Group, chosen_groups
from .measuring.results_files import RESULTS, Rows, read_figures, read_rows
from .senders import FILE as SENDERS
from .senders import summarise_senders

FORWARDS = 200
AT = 400
"""Forwards of the comparison with all weights, where MeZO's rate was chosen."""
LONG = 1000
SHORT = 60
WHOLE = f"{DECIDING}, 872 rows"
PLAIN = ("int4-readout", "int4-mlp-gradient")
"""What learns to choose from the plain prompt; the second by the sensitive values alone."""
SPARSE, MEZO, LORA = "int4-per-example", "mezo-fp32", "lora"
TEXT, TEXT_ALONE, CHAT = "int4-text-head", "int4-text-head-alone", "chat"
HEAD, HEAD_ALONE = "int4-head-only", "int4-head-only-alone"

Device = dict[str, Any] | None


def bench_paper(
    *, forwards: int = FORWARDS, results: Path = RESULTS, summary: bool = True
) -> dict[str, Any]:
    """The table of all four claims, from the committed results of all benchmarks.

    Args:
        forwards: of each run.
        summary: it can do nothing else.

    Returns:
        ``claims`` (see ``claims_of``) and the figures of
        ``summarise_paper``.

    Raises:
        SeedtuneError: a damaged file of results.
    """
    device, rows = read_figures("device", results), read_rows(results)
    figures = summarise_paper(rows, read_rows(results, SENDERS), device)
    return {"claims": claims_of(rows, device, forwards), **figures}


def claims_of(rows: Rows, device: Device, forwards: int) -> dict[str, list[dict[str, Any]]]:
    """The paper's claims, a list of rows each.

    Returns:
        ``masks``, ``bits`` and ``text``: ``what``, ``method``, ``test_rows``, ``seeds``,
        ``forwards``, ``accuracy`` (mean and deviation) on the deciding task, all of its test rows
        where it was judged on them; ``cost``: ``what`` and ``figure``.
        What was not run is left out.
    """
    # A rate falls to the end of its run: the shorter the run, the further it is at a point.
    groups = chosen_groups(rows.values())
    for length in (AT, forwards):
        groups |= chosen_groups(
            row for row in rows.values() if row["settings"].get("forwards") == length
        )

    def lines(methods: dict[str, str]) -> list[dict[str, Any]]:
        found = []
        for method, what in methods.items():
            group = groups.get((method, WHOLE)) or groups.get((method, DECIDING))
            if group is not None and forwards in group.curve:
                found.append(
                    {
                        "what": what,
                        "method": method,
                        "test_rows": group.rows[0]["settings"]["test_rows"],
                        "seeds": len(group.rows),
                        "forwards": forwards,
                        "accuracy": group.curve[forwards],
                    }
                )
        return found

    own = f"{MASKS[0]}-mask-fp32"
    return {
        "masks": lines(
            {MEZO: "all weights (MeZO)"}
            | {f"{mask}-mask-fp32": f"{mask} 0.1 %" for mask in MASKS if mask != "task"}
            | {f"{mask}-fp32": f"{mask} 0.1 %, shared noise" for mask in ("sensitive", "random")}
        ),
        "bits": lines({own: "float32", SPARSE: "int4"}),
        "text": lines({own: "public text", "task-mask-fp32": "the task's training rows"}),
        "cost": [
            {"what": what, "figure": device[name]}
            for name, what in _COSTS.items()
            if device and name in device
        ],
    }


_TEXTS = {
    "deep_text_gain_over_lora": TEXT_ALONE,
    "deep_text_gain_with_memory_over_lora": TEXT,
    "text_gain_over_lora": HEAD_ALONE,
    "text_gain_with_memory_over_lora": HEAD,
}
_COSTS = {
    "mezo_fp32_over_step": "MeZO's step in float32 over a step",
    "lora_over_step": "LoRA's step in float32 over a step",
    "peak_over_mezo": "peak memory of the loop over MeZO's",
    "peak_over_lora": "peak memory of the loop over LoRA's",
}


def summarise_paper(rows: Rows, senders: Rows, device: Device) -> dict[str, Any]:
    """Headline figures.

    Returns:
        ``sparse_forwards_to_mezo_400``: forwards by seeds alone to the mean SST-2 accuracy of MeZO
        on all weights in float32 after 400; ``sparse_accuracy_at_400``, ``mezo_accuracy_at_400``,
        ``sparse_accuracy_at_1000`` (means over seeds); ``values_accuracy_at_60`` and
        ``values_accuracy_at_400``, by the sensitive values along a gradient, and
        ``sst2_points_over_lora``, the best of ours from the plain prompt less LoRA, on all of its
        test rows; ``deep_text_gain_over_lora``: fall of the
        log of perplexity on the named chat by the text head and the terms below it, over LoRA's,
        and as it runs by default, ``deep_text_gain_with_memory_over_lora``; ``text_gain_over_lora``
        and ``text_gain_with_memory_over_lora``, the same without terms;
        ``senders_helped``, ``senders_harmed`` and ``other_text_rise`` of the text head, with
        ``senders_messages`` and ``senders_people``, where most people were measured;
        ``step_over_mezo`` and ``peak_over_lora``. What is not known is null and stands in
        ``missing``, with the command that makes it or the reason.
    """
    chosen = chosen_groups(
        row for row in rows.values() if row["settings"].get("forwards", AT) == AT
    )
    sparse, mezo = (chosen.get((method, DECIDING)) for method in (SPARSE, MEZO))
    long = chosen_groups(row for row in rows.values() if row["settings"].get("forwards") == LONG)
    every = chosen_groups(rows.values())
    text = max(
        (line for line in summarise_senders(senders)["table"] if line["method"] == "text-head"),
        key=lambda line: (line["people"], line["messages"]),
        default=None,
    )
    mezo_at = mezo and _at(mezo, AT)
    lora = _gain(every.get((LORA, CHAT)))
    texts = {name: _gain(every.get((method, CHAT))) for name, method in _TEXTS.items()}
    found: dict[str, Any] = {
        "sparse_forwards_to_mezo_400": sparse and mezo_at and sparse.forwards_to(mezo_at),
        "sparse_accuracy_at_400": sparse and _at(sparse, AT),
        "mezo_accuracy_at_400": mezo_at,
        "sparse_accuracy_at_1000": (group := long.get((SPARSE, DECIDING))) and _at(group, LONG),
        **{f"values_accuracy_at_{at}": _after(rows, PLAIN[1], at) for at in (SHORT, AT)},
        "sst2_points_over_lora": _points_over_lora(every),
        **{name: gain / lora if gain and lora else None for name, gain in texts.items()},
        "senders_helped": text and text["helped"],
        "senders_harmed": text and text["harmed"],
        "other_text_rise": text and text["other_rise"]["mean"],
        "senders_people": text and text["people"],
        "senders_messages": text and text["messages"],
        "step_over_mezo": device and 1 / device["mezo_fp32_over_step"],
        "peak_over_lora": device and device["peak_over_lora"],
    }
    missing = {name: _reason(name) for name, value in found.items() if value is None}
    return {**found, "missing": missing}


_CLAIMS = {
    "masks": "1 what is tuned",
    "bits": "2 weights around it",
    "text": "3 chosen on",
    "cost": "4 cost",
}


def show_paper(summary: dict[str, Any]) -> RenderableType:
    """For people: one line a row of a claim, and the headline figures."""
    table = Table(box=None, pad_edge=False)
    for heading in ("claim", "row", "forwards", "test rows", "seeds", "accuracy or ratio"):
        table.add_column(heading)
    for name, title in _CLAIMS.items():
        for line in summary["claims"][name]:
            if "figure" in line:
                table.add_row(title, line["what"], "", "", "", f"{line['figure']:.2f}")
                continue
            accuracy = {key: 100 * value for key, value in line["accuracy"].items()}
            spread = f" ± {accuracy['deviation']:.1f}" if line["seeds"] > 1 else ""
            table.add_row(
                title,
                line["what"],
                str(line["forwards"]),
                str(line["test_rows"]),
                str(line["seeds"]),
                f"{accuracy['mean']:.1f}{spread} %",
            )
    rest = {name: value for name, value in summary.items() if name not in ("claims", "missing")}
    lacks = [f"{name}: {reason}" for name, reason in summary["missing"].items()]
    return Lines(table, "", fields_table(rest), *lacks)


def _at(group: Group, forwards: int) -> float | None:
    point = group.curve.get(forwards)
    return None if point is None else point["mean"]


def _after(rows: Rows, method: str, forwards: int) -> float | None:
    """Accuracy on all test rows at the end of runs of so many forwards."""
    groups = chosen_groups(
        row for row in rows.values() if row["settings"].get("forwards") == forwards
    )
    group = groups.get((method, WHOLE))
    return None if group is None else _at(group, forwards)


def _points_over_lora(groups: dict[tuple[str, str], Group]) -> float | None:
    ours = [group for method in PLAIN if (group := groups.get((method, WHOLE))) is not None]
    lora = groups.get((LORA, WHOLE))
    if not ours or lora is None:
        return None
    return 100 * (max(group.last["mean"] for group in ours) - lora.last["mean"])


def _gain(group: Group | None) -> float | None:
    """Fall of the log of perplexity, mean over seeds."""
    return None if group is None else math.log(group.curve[0]["mean"] / group.last["mean"])


def _reason(name: str) -> str:
    quality = "seedtune bench quality --methods "
    known: dict[str, Callable[[], str]] = {
        "sparse_accuracy_at_1000": lambda: f"{quality}{SPARSE} --tasks sst2 --forwards {LONG}",
        "step_over_mezo": lambda: "seedtune bench device",
        "peak_over_lora": lambda: "seedtune bench device",
    }
    if name.startswith("senders_") or name == "other_text_rise":
        return "seedtune bench senders --methods start-int4,text-head"
    if name.startswith("values_"):
        at = name.rpartition("_")[2]
        return f"{quality}{PLAIN[1]} --tasks {DECIDING} --forwards {at} --test-rows 872"
    if name == "sst2_points_over_lora":
        methods = ",".join((*PLAIN, LORA))
        return f"{quality}{methods} --tasks {DECIDING} --test-rows 872"
    if name in _TEXTS:
        return f"{quality}{_TEXTS[name]},{LORA} --tasks {CHAT}"
    return known.get(name, lambda: f"{quality}{SPARSE},{MEZO} --tasks {DECIDING} --forwards {AT}")()

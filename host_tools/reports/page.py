"""``seedtune report``: one HTML page of a run that needs neither network nor scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file
from seedtune.runtime.journal.metrics import read_metrics

from .curves import ACROSS, LOSS_TITLE, Curves, metric_title, read_curve
from .svg_chart import TEXT_STYLE, Line, chart

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { padding: .25rem .6rem; text-align: left;
       vertical-align: top; border-bottom: 1px solid #ddd }
td { overflow-wrap: anywhere } .text { white-space: pre-wrap }
code { font-size: .9em } .right { color: #06701f }
.wrong { color: #a3200d } .note { color: #555 } svg { width: 100%; height: auto }
"""


def write_page(found: Curves, run: Path, file: Path, settings: Mapping[str, Any]) -> None:
    """Write the page of the run folder ``run`` to ``file``, readable by its owner alone: it shows
    rows of data.

    Args:
        found: the run's.
        settings: those that mean something to the run, by name.

    Raises:
        SeedtuneError: the page cannot be written.
    """
    outcome = found.outcome
    parts = [
        f"<h1>{escape(found.title)}</h1>",
        *_summary(found, outcome, run),
        *_answers(outcome),
        *_curves(found),
        *_samples(outcome),
        *_rows(found, outcome),
        *_remembered(outcome),
        "<h2>Settings</h2>",
        _table(settings.items()),
        "<h2>Identity</h2>",
        "<p class=note>SHA-256 of what went in and came out. The same bundle and journal give the "
        "same values everywhere.</p>",
        _table(_identity(found, outcome)),
    ]
    page = (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.title)}</title><style>{_STYLE}{TEXT_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    try:
        replace_file(file, page.encode("utf-8", "replace"), private=True)
    except OSError as error:
        raise SeedtuneError(f"{file}: cannot be written: {error.strerror or error}") from error


def _summary(found: Curves, outcome: dict[str, Any], run: Path) -> Iterable[str]:
    lines = read_metrics(run, steps=found.history.steps)
    curve = read_curve(found.history, [line for line in lines if line["kind"] == "step"])
    yield f"<p>{escape(curve.text[:1].upper() + curve.text[1:])}.</p>"
    peak, seconds = outcome.get("peak_rss_bytes"), outcome.get("seconds")
    facts = {
        "ships": outcome.get("message"),
        "why it ended": outcome.get("stop_reason"),
        "forward passes": outcome.get("forwards"),
        "seconds of the last session": None if seconds is None else f"{seconds:.1f}",
        "twice as many would take": outcome.get("twice_as_many"),
        "memory at most": None if peak is None else f"{peak / 1e6:,.0f} MB",
        "steps skipped": found.history.skipped,
    }
    yield _table((name, value) for name, value in facts.items() if value is not None)


def _answers(outcome: dict[str, Any]) -> Iterable[str]:
    """What was answered where what was right, of a task that chooses."""
    counts, frequent = outcome.get("counts"), outcome.get("most_frequent")
    if not counts or not frequent:
        return
    f1 = (outcome.get("after") or {}).get("macro_f1") or 0
    given = list(dict.fromkeys(name for row in counts.values() for name in row))
    yield "<h2>Right answers and given ones</h2>"
    yield (
        f"<p class=note>Rows that chose nothing, after tuning: by right answer (left) and by given "
        f"answer (top). Always answering {escape(frequent['answer'])} would be right for "
        f"{frequent['share']:.1%}. Macro-F1, in which every answer counts alike: "
        f"{f1:.1%}.</p>"
    )
    heading = "".join(f"<th>{escape(name)}" for name in given)
    yield f"<table><tr><th>{heading}</tr>"
    for right, row in counts.items():
        cells = "".join(
            f"<td{' class=right' if name == right else ''}>{row.get(name, 0)}" for name in given
        )
        yield f"<tr><th>{escape(right)}{cells}</tr>"
    yield "</table>"


def _curves(found: Curves) -> Iterable[str]:
    losses = [
        Line("rows it learns from, averaged", found.smoothed, "#9bb7d4", dots=False),
        Line("rows held out", [(each.forwards, each.loss) for each in found.evaluated], "#d9730d"),
    ]
    yield f"<h2>{LOSS_TITLE}</h2>"
    yield chart([line for line in losses if line.points], ACROSS, lambda value: f"{value:.3g}")
    if found.evaluated:
        points = [(each.forwards, each.metric) for each in found.evaluated]
        yield f"<h2>{escape(metric_title(found.metric, found.higher_is_better))}</h2>"
        yield chart([Line("rows held out", points, "#d9730d")], ACROSS, found.said)


def _samples(outcome: dict[str, Any]) -> Iterable[str]:
    samples = outcome.get("samples")
    if not samples:
        return
    yield "<h2>What it writes</h2>"
    yield "<p class=note>To held-out prompts that chose nothing.</p>"
    yield "<table><tr><th>prompt<th>what stands there<th>before<th>after</tr>"
    for each in samples:
        cells = (each[name] for name in ("prompt", "right", "before", "after"))
        yield "<tr>" + "".join(f"<td class=text>{escape(cell)}" for cell in cells) + "</tr>"
    yield "</table>"


def _rows(found: Curves, outcome: dict[str, Any]) -> Iterable[str]:
    rows = outcome.get("rows") or []
    yield "<h2>Before and after, row by row</h2>"
    if not rows:
        yield (
            "<p class=note>None are kept: <code>seedtune tune</code> with held-out rows keeps "
            "twenty.</p>"
        )
        return
    yield f"<p class=note>{len(rows)} held-out rows that chose nothing.</p>"
    chooses = any(row.get("right") is not None for row in rows)
    right = "<th>right answer" if chooses else ""
    yield f"<table><tr><th>row{right}<th>before<th>after</tr>"
    for row in rows:
        fields = "<br>".join(
            f"<b>{escape(name)}</b> {escape(value)}" for name, value in row["fields"].items()
        )
        answer = row.get("right")
        cells = [fields, *([escape(str(answer))] if chooses else [])]
        cells += [_answer(row[when], answer) for when in ("before", "after")]
        yield "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"
    yield "</table>"


def _remembered(outcome: dict[str, Any]) -> Iterable[str]:
    """What a memory of words holds, of a run that has one."""
    texts = outcome.get("remembered")
    if not texts:
        return
    words = sum(each["words"] for each in texts)
    yield "<h2>Words that it remembers</h2>"
    yield (
        f"<p class=note>{words:,} words of {len(texts):,} texts, the newest first, with up to "
        "three that stood in front. <code>seedtune journal forget</code> takes texts out.</p>"
    )
    yield "<table><tr><th>learned<th>words<th>text</tr>"
    for each in texts:
        learned = each.get("learned")
        when = "" if learned is None else f"{datetime.fromtimestamp(learned):%Y-%m-%d %H:%M}"
        yield f"<tr><td>{when}<td>{each['words']}<td class=text>{escape(each['text'])}</tr>"
    yield "</table>"


def _answer(said: dict[str, Any], right: str | None) -> str:
    answer, scores = said.get("answer"), said["scores"]
    if answer is None:  # a completion: how well it fits
        return "" if scores.get("nll") is None else escape(f"loss a token {scores['nll']:.3f}")
    share = "" if scores.get(answer) is None else f" ({scores[answer]:.0%})"
    kind = "right" if answer == right else "wrong"
    mark = "✓" if answer == right else "✗"
    return f"<span class={kind}>{mark} {escape(answer)}{share}</span>"


def _identity(found: Curves, outcome: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    header, data = found.journal.header, found.history.data
    yield "model", (outcome.get("bundle") or {}).get("model")
    yield "bundle", header.bundle_sha256
    yield "values at the start", header.values_sha256
    yield "values that ship", outcome.get("values_sha256")
    yield "training rows", data["train_sha256"] or None
    yield "held-out rows that choose", data["eval_sha256"] or None


def _table(items: Iterable[tuple[str, Any]]) -> str:
    rows = (
        f"<tr><th>{escape(str(name))}</th> <td>{escape(str(value))}</td></tr>"
        for name, value in items
        if value is not None
    )
    return "<table>" + "\n".join(rows) + "</table>"

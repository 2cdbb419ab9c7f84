"""``seedtune bench senders``: ways to learn how a person writes, at equal messages.

A table of (method, person, messages). Every cell runs in a process of its own and stands in the
results as soon as it is done; what stands there is not run again, so that the table grows over
many runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines.memory import peak_resident_bytes
from seedtune.runtime.errors import SeedtuneError

from ..data.calibration import load_calibration
from ..data.fetch import fetch
from ..quickstart import MODEL
from ..this_machine import machine
from .contenders.people import (
    LENGTH,
    METHODS,
    SENDERS,
    SIZES,
    Method,
    Person,
    load_person,
    sender_of,
)
from .measuring.default_bundle import default_bundle
from .measuring.process import call_function
from .measuring.results_files import RESULTS, Row, Rows, merge_rows, read_rows, row_key, say

FILE = "senders"
HARM = 0.005
"""Log-perplexity: a person is helped or harmed by more than this, half a per cent."""
_ENDED = Method("", "start-int4")
"""A method that is no longer run, whose rows stay."""
OTHER_SEQUENCES = 80
"""Sequences of 128 tokens, of text that has nothing to do with anybody. The change of its loss that
a head for text makes has a deviation of some 0.2 a token: 16 sequences tell it to 0.4 %,
these to 0.2."""


def bench_senders(
    *,
    methods: tuple[str, ...] = tuple(METHODS),
    senders: tuple[str, ...] = tuple(SENDERS),
    messages: tuple[int, ...] = SIZES,
    bundle: Path | None = None,
    threads: int | None = None,
    results: Path = RESULTS,
    summary: bool = False,
) -> dict[str, Any]:
    """Fill in the cells asked for, person by person, and sum up all results.

    Args:
        senders: people, by the start of their id.
        messages: how many of each may be learned from.
        bundle: exported program; by default the quickstart's.
        summary: compute nothing, read the committed results.

    Returns:
        See ``summarise_senders``.

    Raises:
        SeedtuneError: an unknown method or person, or what a cell raises.
    """
    for name in methods:
        if name not in METHODS:
            raise SeedtuneError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    people = [sender_of(name) for name in senders]
    if not summary:
        if bundle is None and any(METHODS[name].bundle for name in methods):
            bundle = default_bundle(MODEL)
        for size in messages:
            for person in people:
                for name in methods:
                    # What the untouched model knows does not depend on how much there is.
                    learned = size if METHODS[name].learns else 0
                    shared = {"threads": threads, "bundle": bundle}
                    _cell(name, person, learned, shared, results)
    return summarise_senders(read_rows(results, FILE))


def _cell(name: str, sender: str, messages: int, shared: dict[str, Any], results: Path) -> None:
    """Compute one cell, unless it stands in the results."""
    method = METHODS[name]
    person = load_person(sender, messages)
    content = json.dumps([person.train, person.held_out, person.test], sort_keys=True)
    settings: dict[str, Any] = {
        "model": MODEL,
        "data_sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
        "length": LENGTH,
        "messages": messages,
        "other_sequences": OTHER_SEQUENCES,
        **method.settings_for(messages),
    }
    if method.bundle:
        settings["bundle_sha256"] = open_bundle(shared["bundle"]).sha256
    key = row_key(name, f"{sender[:8]}/{messages}", settings["seed"], settings)
    if key in read_rows(results, FILE):
        return
    shared = {**shared, "other": _other_text()}
    found = call_function(_work, name, person, settings | shared)
    row = {"method": name, "sender": sender, **found, "settings": settings, "machine": machine()}
    merge_rows({key: row}, results, FILE)
    say(f"{key}: {found['test']}")


def _work(name: str, person: Person, settings: dict[str, Any]) -> dict[str, Any]:
    method = METHODS[name]
    if settings["threads"] and not method.bundle:
        import torch

        torch.set_num_threads(settings["threads"])
    run = import_module(f"{__package__}.contenders.{method.module}").run_on_person
    found = run(person, {**settings, "source": str(fetch(MODEL))})
    return {"peak_rss_bytes": peak_resident_bytes(), **found}


@cache
def _other_text() -> NDArray[np.int64]:
    """Tokens of text that has nothing to do with anybody's messages."""
    from seedtune.export.model.load_model import load_causal_lm

    tokenizer = load_causal_lm(str(fetch(MODEL))).tokenizer
    return load_calibration(tokenizer, held_out=OTHER_SEQUENCES).held_out


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

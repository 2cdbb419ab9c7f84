"""``seedtune bench senders``: ways to learn how a person writes, at equal messages.

A table of (method, person, messages). Every cell runs in a process of its own and stands in the
results as soon as it is done; what stands there is not run again, so that the table grows over
many runs.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines.memory import peak_resident_bytes
from seedtune.runtime.errors import SeedtuneError

from ..data.calibration import load_calibration
from ..quickstart import MODEL
from ..this_machine import machine
from .contenders.people import SENDERS, SIZES, Person, load_person, sender_of
from .contenders.people_methods import LENGTH, METHODS
from .measuring.default_bundle import default_bundle, model_source
from .measuring.process import call_function
from .measuring.results_files import RESULTS, say
from .measuring.tuning_run import Progress
from .summaries.rows import merge_rows, read_rows, row_key
from .summaries.senders import FILE, show_senders, summarise_senders

__all__ = ["bench_senders", "show_senders"]

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
    model: str = MODEL,
    threads: int | None = None,
    results: Path = RESULTS,
    summary: bool = False,
    progress: Progress = say,
) -> dict[str, Any]:
    """Fill in the cells asked for, person by person, and sum up all results.

    Args:
        senders: people, by the start of their id.
        messages: how many of each may be learned from.
        bundle: exported program; by default the quickstart's.
        summary: compute nothing, read the committed results.

    Returns:
        See ``summaries.senders.summarise_senders``.

    Raises:
        SeedtuneError: an unknown method or person, or what a cell raises.
    """
    for name in methods:
        if name not in METHODS:
            raise SeedtuneError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    people = [sender_of(name) for name in senders]
    if not summary:
        needed = bundle or any(METHODS[name].bundle for name in methods)
        program = (bundle or default_bundle(model)) if needed else None
        for size in messages:
            for person in people:
                for name in methods:
                    # What the untouched model knows does not depend on how much there is.
                    learned = size if METHODS[name].learns else 0
                    shared = {"threads": threads, "bundle": program}
                    _cell(name, person, learned, model, shared, results, progress)
    return summarise_senders(read_rows(results, FILE))


def _cell(
    name: str,
    sender: str,
    messages: int,
    model: str,
    shared: dict[str, Any],
    results: Path,
    progress: Progress,
) -> None:
    """Compute one cell, unless it stands in the results."""
    method = METHODS[name]
    person = load_person(sender, messages)
    content = json.dumps([person.train, person.held_out, person.test], sort_keys=True)
    settings: dict[str, Any] = {
        "model": model,
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
    shared = {**shared, "other": _other_text(model)}
    found = call_function(_work, name, person, settings | shared)
    row = {"method": name, "sender": sender, **found, "settings": settings, "machine": machine()}
    merge_rows({key: row}, results, FILE)
    progress(f"{key}: {found['test']}")


def _work(name: str, person: Person, settings: dict[str, Any]) -> dict[str, Any]:
    method = METHODS[name]
    if settings["threads"] and not method.bundle:
        import torch

        torch.set_num_threads(settings["threads"])
    run = import_module(f"{__package__}.contenders.{method.module}").run_on_person
    found = run(person, {**settings, "source": model_source(settings["model"])}, say)
    return {"peak_rss_bytes": peak_resident_bytes(), **found}


@cache
def _other_text(model: str) -> NDArray[np.int64]:
    """Tokens of text that has nothing to do with anybody's messages."""
    from seedtune.export.model.load_model import load_causal_lm

    tokenizer = load_causal_lm(model_source(model)).tokenizer
    return load_calibration(tokenizer, held_out=OTHER_SEQUENCES).held_out

"""The method itself: the exported int4 program, through its engine."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from typing import Any

from seedtune.runtime.bundle import DEFAULT_BOUNDS, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.memory import peak_resident_bytes
from seedtune.runtime.journal.start import Start
from seedtune.runtime.model import open_model
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import encode_rows, task_for

from ...data.calibration import load_calibration
from ...data.named_tasks import TaskData
from ..measuring.results_files import say
from ..measuring.runs import Stopwatch, encode, message_batches, perplexity, text_batches, tune
from .people import SPEC, Person
from .task_methods import tuner_settings


def run_on_task(data: TaskData, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the tuner.

    Returns:
        As ``runs.tune``, and ``metric``; of a completion task also ``generic_perplexity``,
        of text that has nothing to do with the task, ``before`` and ``after`` the last step.
    """
    bundle = open_bundle(settings["bundle"])
    if "demonstrations" in settings:
        with open_model(bundle, task=data.spec, on_long="truncate") as model:
            rows = model.show(data.train, settings["demonstrations"])
            data = replace(data, train=[*rows], spec=dict(model.task_spec or {}))
    bounds = replace(bundle.bounds, length=min(settings["length"], bundle.bounds.length))
    task, train, test = encode(
        data, bundle.tokenizer(), bounds, bundle.pad_id, settings["test_rows"]
    )
    engine, start = open_engine(bundle, settings["threads"] or "auto"), Start.of(bundle)
    found, last = tune(engine, start, task, train, test, tuner_settings(settings))
    found |= {
        "mask": bundle.manifest["mask"],
        "quantisation": bundle.manifest["quantisation"],
        "bundle_sha256": bundle.sha256,
        "metric": task.metric_name,
        "peak_rss_bytes": peak_resident_bytes(),
    }
    if task.metric_name == "perplexity":
        # The host's tokenizer comes with the float model; its memory is not the method's.
        from seedtune.export.model.load_model import load_causal_lm

        text = load_calibration(load_causal_lm(settings["source"]).tokenizer).held_out
        found["generic_perplexity"] = {
            when: perplexity(partial(values.score, engine), text_batches(text, bundle.bounds))
            for when, values in (("before", Values(start.values)), ("after", last))
        }
    engine.close()
    return found


def run_on_person(person: Person, settings: dict[str, Any]) -> dict[str, Any]:
    """Tune by the public interface, as an app would do it; what is not in ``settings["tuner"]`` is
    left to its defaults. With ``messages`` 0 the program is judged untouched.

    Returns:
        ``test`` and ``other``, the ``perplexity`` of later messages, and of text that has nothing
        to do with them; ``step``, the one that shipped, 0 where the gate kept the start.
    """
    if settings["messages"] == 0:
        return _judged(settings, person, None)
    watch = Stopwatch()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_model(
            settings["bundle"], task=SPEC, on_long="truncate", threads=settings["threads"] or "auto"
        ) as model,
        model.tuner(folder, person.train, person.held_out, **settings["tuner"]) as tuner,
    ):
        for report in tuner:
            if report.evaluation is not None:
                say(f"step {report.step}: {report.evaluation.loss:.4f} on held-out messages")
        tuned = tuner.tuned()
    spent = {**watch.read(), "peak_rss_bytes": peak_resident_bytes()}
    return {**_judged(settings, person, tuned.values), **spent, "step": tuned.step}


def _judged(settings: dict[str, Any], person: Person, values: Values | None) -> dict[str, Any]:
    bundle = open_bundle(settings["bundle"])
    bounds = replace(bundle.bounds, length=settings["length"])
    task = task_for(bundle, SPEC, bounds=bounds, on_long="truncate")
    texts = {
        "test": message_batches(task, encode_rows(task, person.test), bounds),
        "other": text_batches(settings["other"], DEFAULT_BOUNDS),
    }
    values = values or Start.of(bundle).tuned_from(None)
    with open_engine(bundle, settings["threads"] or "auto") as engine:
        score = partial(values.score, engine)
        return {name: {"perplexity": perplexity(score, each)} for name, each in texts.items()}

"""The int4 program tuned on one person's messages, as an app would do it."""

from __future__ import annotations

import tempfile
from typing import Any

from seedtune.runtime.engines.system_memory import peak_resident_bytes
from seedtune.runtime.model import open_model

from ..measuring.timing import Stopwatch
from ..measuring.tuning_run import Progress
from .data import SPEC, Person
from .program_words import ProgramWords


def run(person: Person, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Tune by the public interface; what is not in ``settings["tuner"]`` is left to its defaults.

    Returns:
        ``test`` and ``other`` as ``judged.judged`` has them; ``step``, the one that shipped, 0
        where the gate kept the start.
    """
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
                progress(f"step {report.step}: {report.evaluation.loss:.4f} on held-out messages")
        tuned = tuner.tuned()
    spent = {**watch.read()._asdict(), "peak_rss_bytes": peak_resident_bytes()}
    words = ProgramWords(settings)
    texts = {"test": words.messages(person.test), "other": words.other_text()}
    found = {
        name: words.figures(words.see(batches, tuned.values)) for name, batches in texts.items()
    }
    return {**found, **spent, "step": tuned.step}

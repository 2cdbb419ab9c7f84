"""The tuner on the float32 model: what int4 costs, and what the mask buys.

The tuner itself runs, on the model's linear weights in PyTorch instead of an exported program.
"""

from __future__ import annotations

import hashlib
from typing import Any

from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.journal.start import Start

from ..measuring.tuning_run import Progress, tune
from .float_engine import FloatEngine
from .float_task import FloatTask
from .mask_places import blocks_of, places_of
from .task_methods import tuner_settings


def run_on_task(cell: FloatTask, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the tuner on the entries of ``settings["mask"]`` (see ``mask_places``).

    Returns:
        As ``tuning_run.tune``. The model is left with the values of the last step.
    """
    bundle = open_bundle(settings["bundle"])
    places = places_of(settings["mask"], cell, bundle, settings)
    own = tuner_settings(settings)
    engine = FloatEngine(cell.model, places)
    identity = hashlib.sha256()
    for name, flat in places.items():
        identity.update(name.encode() + flat.tobytes())
    start = Start(
        engine.values,
        identity.hexdigest(),
        cell.bounds,
        blocks=blocks_of(places),
        block_count=int(bundle.manifest["model"]["layers"]),
    )
    found, last = tune(engine, start, cell.task, cell.train, cell.test, own, progress)
    engine.put(last.sensitive)
    return found

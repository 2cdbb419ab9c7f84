"""The tuner on the float32 model: what int4 costs, and what the mask buys.

The tuner itself runs, on the model's linear weights in PyTorch instead of an exported program.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from seedtune.export.model.decoder_linears import decoder_linears
from seedtune.export.profile.masks import random_entries
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start

from .float_task import FloatTask
from .quality_methods import tuner_settings
from .torch_engine import Places, TorchEngine
from .tuning_run import Progress, tune


def run(
    cell: FloatTask, settings: dict[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Run, or go on with, the tuner on the bundle's mask or on as many random entries.

    Returns:
        As ``tuning_run.tune``. The model is left with the values of the last step.
    """
    bundle = open_bundle(settings["bundle"])
    random = settings["mask"] == "random"
    places = random_places(cell.model, bundle.K, settings["seed"]) if random else mask_of(bundle)
    own = tuner_settings(settings)
    engine = TorchEngine(cell.model, places, hidden=own.estimator == "readout")
    identity = hashlib.sha256()
    for name, flat in places.items():
        identity.update(name.encode() + flat.tobytes())
    start = Start(engine.values, identity.hexdigest(), cell.bounds)
    run_folder = folder / "run"
    found = tune(
        engine,
        start,
        cell.task,
        cell.train,
        cell.test,
        own,
        run_folder,
        progress,
    )
    engine.put(replay(run_folder, start).values[: engine.entries])
    return found


def mask_of(bundle: Bundle) -> Places:
    """The bundle's sensitive entries."""
    return {
        layer.name: bundle.indices[layer.offset : layer.offset + layer.count]
        for layer in bundle.layers
        if layer.count
    }


def random_places(model: Any, count: int, seed: int) -> Places:
    """``count`` entries drawn evenly from all linear weights but the head."""
    sizes = {name: linear.weight.numel() for name, linear in decoder_linears(model).items()}
    found = random_entries(sizes, count, seed)
    return {name: part for name, part in found.items() if len(part)}

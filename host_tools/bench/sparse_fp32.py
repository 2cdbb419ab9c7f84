"""The tuner on the float32 model: what int4 costs, and what the mask buys.

The tuner itself runs, on the model's linear weights in PyTorch instead of an exported program.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start

from .float_task import FloatTask
from .learning import Progress, tune
from .quality_methods import tuner_settings
from .torch_engine import Places, TorchEngine


def run(
    cell: FloatTask, settings: dict[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Run, or go on with, the tuner on the bundle's mask or on as many random entries.

    Returns:
        As ``learning.tune``. The model is left with the values of the last step.
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
    head = model.get_output_embeddings()
    sizes = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    ends = np.cumsum(list(sizes.values()))
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(int(ends[-1]), count, replace=False, shuffle=False))
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    firsts = ends - np.array(list(sizes.values()))
    return {
        name: part - first
        for name, part, first in zip(sizes, parts, firsts, strict=True)
        if len(part)
    }

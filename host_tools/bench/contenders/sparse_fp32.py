"""The tuner on the float32 model: what int4 costs, and what the mask buys.

The tuner itself runs, on the model's linear weights in PyTorch instead of an exported program.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from seedtune.export.model.decoder_linears import decoder_linears
from seedtune.export.model.load_model import load_causal_lm
from seedtune.export.profile.fisher import compute_profile
from seedtune.export.profile.kept_profile import kept_profile
from seedtune.export.profile.masks import Mask, mask_method, random_entries
from seedtune.export.profile.profile_file import Profile
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.journal.start import Start
from seedtune.runtime.tasks import Encoded
from seedtune.runtime.tasks.classification import Classification
from seedtune.runtime.tasks.multiple_choice import MultipleChoice

from ...data.calibration import load_calibration
from ..measuring.runs import tune
from .float_task import FloatEngine, FloatTask, Places
from .task_methods import tuner_settings


def run_on_task(cell: FloatTask, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the tuner on the entries of ``settings["mask"]`` (see ``places_of``).

    Returns:
        As ``runs.tune``. The model is left with the values of the last step.
    """
    bundle = open_bundle(settings["bundle"])
    places = places_of(settings["mask"], cell, bundle, settings)
    own = tuner_settings(settings)
    engine = FloatEngine(cell.model, places)
    identity = hashlib.sha256()
    for name, flat in places.items():
        identity.update(name.encode() + flat.tobytes())
    # Decoder blocks, from the names of the matrices.
    blocks = [int(re.findall(r"\.(\d+)\.", name)[0]) for name in places]
    start = Start(
        engine.values,
        identity.hexdigest(),
        cell.bounds,
        blocks=np.repeat(blocks, [len(flat) for flat in places.values()]),
        block_count=int(bundle.manifest["model"]["layers"]),
    )
    found, last = tune(engine, start, cell.task, cell.train, cell.test, own)
    engine.put(last.sensitive)
    return found


def places_of(mask: str, cell: FloatTask, bundle: Bundle, settings: dict[str, Any]) -> Places:
    """The entries of a mask, as many as the bundle's sensitive ones, matrix by matrix.

    Args:
        mask: ``sensitive``, the bundle's own; ``random``, drawn evenly; ``magnitude``, the largest
            weights; ``per-layer``, the same share of every matrix by Fisher value; ``task``, chosen
            like the bundle's own, but on the task's training rows with their answers in place of
            public text.
        settings: of the cell: ``seed`` draws random entries, ``source`` is the model.
    """
    if mask == "sensitive":
        return {
            layer.name: bundle.indices[layer.offset : layer.offset + layer.count]
            for layer in bundle.layers
            if layer.count
        }
    if mask == "random":
        return random_places(cell.model, bundle.K, settings["seed"])
    loaded = load_causal_lm(settings["source"])
    text = load_calibration(loaded.tokenizer)
    if mask == "task":
        profile = _profile_of(cell, text.profile.shape)
    else:
        profile = kept_profile(loaded, text.profile, text.sha256)
    method = bundle.manifest["mask"]["method"] if mask == "task" else mask
    chosen = mask_method(method, model=loaded.model)(profile, bundle.K / profile.entries)
    return _filled(chosen)


def random_places(model: Any, count: int, seed: int) -> Places:
    """``count`` entries drawn evenly from all linear weights but the head."""
    sizes = {name: linear.weight.numel() for name, linear in decoder_linears(model).items()}
    return _filled(random_entries(sizes, count, seed))


def _profile_of(cell: FloatTask, shape: tuple[int, ...]) -> Profile:
    """Over the first training rows with their answers, end to end, as many tokens as ``shape``."""
    stream: list[int] = []
    for example in cell.train:
        stream += answered(cell, example)
        if len(stream) >= np.prod(shape):
            break
    tokens = np.array(stream[: int(np.prod(shape))], np.int64).reshape(shape)
    return compute_profile(cell.model, tokens, model_name="", model_sha256="", text_sha256="")


def answered(cell: FloatTask, example: Encoded) -> list[int]:
    """Tokens of an example with its answer, without padding."""
    if isinstance(cell.task, Classification):
        word = cell.spec["verbalisers"][cell.task.labels[example.gold]]
        return [*example.tokens[0].tolist(), *cell.tokenizer.encode(word).ids]
    row = example.gold if isinstance(cell.task, MultipleChoice) else 0
    columns = example.positions[example.positions[:, 0] == row, 1]
    return list(example.tokens[row, : columns.max() + 2].tolist())


def _filled(mask: Mask) -> Places:
    return {name: flat for name, flat in mask.items() if len(flat)}

"""The very module that a bundle was exported from, in PyTorch with torchao's quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.export.recipe import Recipe
from seedtune.runtime.bundle import Bundle

from ...data.calibration import load_calibration
from ...prepare.prepare import Prepared


def eager_program(loaded: Any, base: Prepared) -> Any:
    """The ``ScoreProgram`` that ``base`` was exported from, in PyTorch; consumes ``loaded``."""
    from seedtune.export.profile.kept_profile import kept_profile
    from seedtune.export.profile.masks import build_mask, mask_method
    from seedtune.export.program.prepare_program import prepare_program
    from seedtune.export.quantise.quantise_program import quantise_program

    manifest = base.bundle.manifest
    text = load_calibration(loaded.tokenizer)
    profile = kept_profile(loaded, text.profile, text.sha256)
    method = mask_method(manifest["mask"]["method"], model=loaded.model)
    mask = build_mask(profile, manifest["mask"]["fraction"], method)
    recipe = recipe_of(manifest["quantisation"])
    activity = {name: layer.input_absmax for name, layer in profile.layers.items()}
    program, surgery = prepare_program(loaded.model, mask, base.bundle.bounds, recipe, activity)
    _same_entries(surgery.indices, base.bundle)
    quantise_program(program, surgery, recipe, text.profile)
    return program


def recipe_of(quantisation: Mapping[str, Any]) -> Recipe:
    """The recipe that a bundle's manifest states under ``quantisation``."""
    return Recipe(**{field.name: quantisation[field.name] for field in fields(Recipe)})


def _same_entries(indices: NDArray[np.int64], bundle: Bundle) -> None:
    if not np.array_equal(indices, bundle.indices):
        raise ValueError(f"{bundle.path}: its mask is not the one of the profile beside it")

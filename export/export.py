"""Export a model and a mask to a bundle: surgery, quantisation, lowering, writing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle import DEFAULT_BOUNDS, Bounds, Bundle, Layer, write_bundle
from seedtune.runtime.errors import ModelError
from torch import nn

from .lower.lower import PROGRAM, example_inputs, lower, trace
from .model.load_model import LoadedModel, load_causal_lm
from .program.score_program import ScoreProgram
from .program.sensitive_linear import ProbeValues, Surgery, input_groups, insert_sensitive_linears
from .quantise.calibrated_pass import round_by_calibration_
from .quantise.int4 import DESCRIPTION, quantise_linears_

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); the stages are ``load``, ``quantise``, ``trace``, ``lower``."""


@dataclass(frozen=True)
class Recipe:
    """What of the activations stays out of the int8 path, and how weights become int4.

    Attributes:
        float_columns: the sensitive columns are computed in float as a whole.
        outlier_share: so is this share of each input's columns, the most active ones. With 2 % on
            SmolLM2 the loss noise fell from 0.013 to 0.010 and perplexity from 48.8 to 46.6, but a
            forward took 1.20x of the dense program's instead of 1.09x; hence none by default.
        rounding: ``gptq`` makes up for rounding errors with calibration text (see
            ``seedtune.export.gptq``), ``nearest`` takes each weight by itself.
    """

    float_columns: bool = True
    outlier_share: float = 0.0
    rounding: str = "gptq"

    @classmethod
    def of(cls, quantisation: Mapping[str, Any]) -> "Recipe":
        """The recipe that a bundle's manifest states under ``quantisation``.

        One without ``rounding`` is of a time when there was only ``nearest``.

        Raises:
            ModelError: another field is missing.
        """
        stated = {"rounding": "nearest", **quantisation}
        for field in fields(cls):
            if field.name not in stated:
                raise ModelError(
                    f"manifest: quantisation lacks {field.name!r}; export the bundle again"
                )
        return cls(**{field.name: stated[field.name] for field in fields(cls)})


def export_bundle(
    source: str | Path | LoadedModel,
    mask: Mapping[str, npt.NDArray[np.int64]],
    output: str | Path,
    *,
    bounds: Bounds = DEFAULT_BOUNDS,
    recipe: Recipe | None = None,
    activity: Mapping[str, npt.NDArray[np.float32]] | None = None,
    calibration: npt.NDArray[np.int64] | None = None,
    mask_description: Mapping[str, Any],
    profiled_sha256: str | None = None,
    task: Mapping[str, Any] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Write the bundle folder ``output`` for the model at ``source``.

    Args:
        source: Hugging Face folder, hub id or GGUF file, or the model itself, which is then
            consumed: its linears are replaced in place.
        mask: layer name to sorted int64 flat indices (see ``seedtune.host_tools.masks``).
        activity: layer name to the largest absolute activation of each input column, float32
            ``[in]``; needed for ``recipe.outlier_share``.
        calibration: generic text as tokens, int64 ``[n, length]``; needed for GPTQ.
        profiled_sha256: the model that the mask was made for; another one is refused.
        mask_description: ``method, fraction, profile_sha256`` for the manifest.

    Raises:
        ModelError: the model cannot be read or has a structure that export does not support.
        BundleError: the folder cannot be written.
    """
    recipe = recipe or Recipe()
    _check_rounding(recipe, calibration)
    progress("load", 0, 1)
    loaded = source if isinstance(source, LoadedModel) else load_causal_lm(source)
    progress("load", 1, 1)
    if profiled_sha256 not in (None, loaded.sha256):
        raise ModelError(f"{loaded.name}: the profile was made of another model; profile this one")
    progress("quantise", 0, 1)
    program, surgery = prepare_program(loaded.model, mask, bounds, recipe, activity)
    quantise_program(
        program, surgery, recipe, calibration, lambda done, total: progress("quantise", done, total)
    )
    progress("trace", 0, 1)
    config = loaded.model.config
    example = example_inputs(bounds, len(surgery.values), config.vocab_size)
    traced = trace(program, example, bounds)
    progress("trace", 1, 1)
    progress("lower", 0, 1)
    buffer = lower(traced, lambda done, total: progress("lower", done, total))
    return write_bundle(
        output,
        programs=[PROGRAM],
        files={PROGRAM.files[0]: buffer},
        values=surgery.values,
        indices=surgery.indices,
        layers=[Layer(*layer) for layer in surgery.layers],
        tokenizer_json=loaded.tokenizer_json,
        model={
            "name": loaded.name,
            "architecture": type(loaded.model).__name__,
            "sha256": loaded.sha256,
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
        },
        mask=mask_description,
        quantisation={
            **DESCRIPTION,
            "rounding": recipe.rounding,
            "float_columns": recipe.float_columns,
            "outlier_share": recipe.outlier_share if recipe.float_columns else 0.0,
            "compact_share": round(surgery.compact_share, 6),
        },
        bounds=bounds,
        pad_id=loaded.tokenizer.pad_token_id or 0,
        hidden_blocks=program.tap.blocks,
        mean_blocks=program.tap.mean_blocks,
        task=task,
    )


def prepare_program(
    model: Any,
    mask: Mapping[str, npt.NDArray[np.int64]],
    bounds: Bounds,
    recipe: Recipe | None = None,
    activity: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> tuple[ScoreProgram, Surgery]:
    """The float program with its sparse term, ready to be quantised; consumes ``model``."""
    recipe = recipe or Recipe()
    if bounds.length > getattr(model.config, "max_position_embeddings", bounds.length):
        raise ModelError(
            f"length bound {bounds.length} exceeds the model's "
            f"{model.config.max_position_embeddings} positions; lower it"
        )
    extra = None
    if recipe.float_columns and recipe.outlier_share > 0:
        if activity is None:
            raise ModelError("outlier columns need the activation statistics of a profile")
        extra = {
            name: np.sort(
                np.argsort(-most, kind="stable")[: round(len(most) * recipe.outlier_share)]
            )
            for name, most in activity.items()
        }
    names = [name for name, flat in mask.items() if flat.size]
    linears = dict(model.named_modules())
    for name in names:
        if not isinstance(linears.get(name), nn.Linear):
            raise ModelError(f"mask: {name} is not a linear layer of this model; profile it again")
    groups = input_groups(model, names, torch.zeros(1, 2, dtype=torch.int64))
    surgery = insert_sensitive_linears(
        model, mask, groups, float_columns=recipe.float_columns, extra_columns=extra
    )
    program = ScoreProgram(model, surgery.probe_values, bounds).eval()
    with torch.no_grad():  # also registers what tracing must find in place
        program(*example_inputs(bounds, len(surgery.values), model.config.vocab_size))
    return program, surgery


def quantise_program(
    program: ScoreProgram,
    surgery: Surgery,
    recipe: Recipe,
    calibration: npt.NDArray[np.int64] | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Quantise, in place, what ``prepare_program`` gave, as ``recipe.rounding`` says.

    Raises:
        ModelError: the recipe and the calibration text do not suit each other or the model.
    """
    _check_rounding(recipe, calibration)
    if recipe.rounding == "nearest":
        quantise_linears_(program)
        progress(1, 1)
        return
    assert calibration is not None
    vocabulary = program.embedding.weight.shape[0]
    if calibration.min() < 0 or calibration.max() >= vocabulary:
        raise ModelError(
            f"calibration holds tokens outside the model's vocabulary of {vocabulary}; "
            "tokenise it with the tokenizer of this model"
        )
    values = torch.from_numpy(surgery.values.astype(np.float32))[None]
    round_by_calibration_(program, torch.from_numpy(calibration), values, progress)


def _check_rounding(recipe: Recipe, calibration: npt.NDArray[np.int64] | None) -> None:
    """Refuse before minutes of work."""
    if recipe.rounding not in ("gptq", "nearest"):
        raise ModelError(f"unknown rounding {recipe.rounding!r}; take gptq or nearest")
    if recipe.rounding == "nearest":
        return
    if calibration is None:
        raise ModelError("rounding by gptq needs calibration text; give some or take nearest")
    if calibration.ndim != 2 or calibration.size == 0:
        raise ModelError(f"calibration must be tokens [n, length], not {calibration.shape}")


def export_without_sparse_term(
    loaded: LoadedModel, bounds: Bounds, progress: Progress = lambda stage, done, total: None
) -> bytes:
    """The same int4 program with every linear whole: what benchmarks compare the sparse term with.

    Its weights are rounded to the nearest step, which changes no time.

    Its ``values`` are ``[P, 1]`` and only say how many probes there are. Consumes ``loaded``.
    """
    program = ScoreProgram(loaded.model, ProbeValues(), bounds).eval()
    example = example_inputs(bounds, 1, loaded.model.config.vocab_size)
    with torch.no_grad():
        program(*example)
    quantise_linears_(program)
    progress("trace", 0, 1)
    traced = trace(program, example, bounds)
    progress("trace", 1, 1)
    return lower(traced, lambda done, total: progress("lower", done, total))

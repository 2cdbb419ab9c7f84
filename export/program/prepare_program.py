"""From a model and a mask to the float program, ready to be quantised."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import ModelError
from torch import nn

from .score_program import ScoreProgram
from .sensitive_linear import Surgery, input_groups, insert_sensitive_linears


def prepare_program(
    model: Any,
    mask: Mapping[str, npt.NDArray[np.int64]],
    bounds: Bounds,
    rank: int = 0,
) -> tuple[ScoreProgram, Surgery]:
    """The float program with its sparse term, ready to be quantised; consumes ``model``. ``rank``
    is that of the terms that it takes, where the model suits them (see ``low_rank_terms``)."""
    if bounds.length > getattr(model.config, "max_position_embeddings", bounds.length):
        raise ModelError(
            f"length bound {bounds.length} exceeds the model's "
            f"{model.config.max_position_embeddings} positions; lower it"
        )
    if bounds.rows < 2:
        raise ModelError("row bound 1 would fix the number of rows in a pass; take at least 2")
    names = [name for name, flat in mask.items() if flat.size]
    modules = dict(model.named_modules())
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            raise ModelError(f"mask: {name} is not a linear layer of this model; profile it again")
    groups = input_groups(model, names, torch.zeros(1, 2, dtype=torch.int64))
    surgery = insert_sensitive_linears(model, mask, groups)
    program = ScoreProgram(model, surgery, bounds, rank).eval()
    with torch.no_grad():  # also registers what tracing must find in place
        program(*program.example())
    program.cache_shapes = tuple(program.layout.shapes)
    return program, surgery

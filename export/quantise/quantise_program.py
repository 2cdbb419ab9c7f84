"""Quantises a prepared program."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError

from ..program.score_program import ScoreProgram
from ..program.sensitive_linear import Surgery
from . import NEAREST, check_rounding
from .calibrated_pass import Passed, round_by_calibration_
from .int4 import quantise_linears_


def quantise_program(
    program: ScoreProgram,
    surgery: Surgery,
    rounding: str,
    calibration: npt.NDArray[np.int64] | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Passed | None:
    """Quantise, in place, what ``prepare_program`` gave.

    Args:
        rounding: ``gptq`` makes up for rounding errors with calibration text (see ``gptq``),
            ``nearest`` takes each weight by itself.
        calibration: generic text as tokens int64 ``[n, length]``; ``nearest`` needs none.

    Returns:
        What the quantised program makes of the calibration text, where that passed through it.

    Raises:
        ModelError: the rounding is unknown, or the calibration text does not suit it or the model.
    """
    check_rounding(rounding)
    if rounding == NEAREST:
        quantise_linears_(program, progress)
        _leave_the_file(program)
        return None
    if calibration is None:
        raise ModelError("rounding by gptq needs calibration text; give some or take nearest")
    if calibration.ndim != 2 or calibration.size == 0:
        raise ModelError(f"calibration must be tokens [n, length], not {calibration.shape}")
    vocabulary = program.embedding.weight.shape[0]
    if calibration.min() < 0 or calibration.max() >= vocabulary:
        raise ModelError(
            f"calibration holds tokens outside the model's vocabulary of {vocabulary}; "
            "tokenise it with the tokenizer of this model"
        )
    values = torch.from_numpy(surgery.values.astype(np.float32))[None]
    passed = round_by_calibration_(program, torch.from_numpy(calibration), values, progress)
    _leave_the_file(program)
    return passed


def _leave_the_file(program: ScoreProgram) -> None:
    """Copy what stayed float, such as norms: any of it would keep the model's whole file mapped."""
    for parameter in program.parameters():
        if type(parameter.data) is torch.Tensor:
            parameter.data = parameter.data.clone()

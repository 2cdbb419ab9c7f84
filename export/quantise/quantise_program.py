"""Quantises a prepared program: all linears to int4, the embedding being int8 already."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError
from torch import nn

from ..program.score_program import ScoreProgram
from ..program.sensitive_linear import Surgery
from . import NEAREST
from .gptq import inverse_factor, round_with_compensation
from .int4 import (
    GROUP_SIZE,
    check_finite,
    check_widths,
    give_int4_,
    quantise_linears_,
    through_int8,
)

Progress = Callable[[int, int], None]
"""Called with (linears rounded, linears in all)."""
Passed = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""For every token of a text: the states that an adapter reads, ``[G, S]``, and what the head reads,
``[G, D]``."""


def quantise_program(
    program: ScoreProgram,
    surgery: Surgery,
    rounding: str,
    calibration: npt.NDArray[np.int64],
    progress: Progress = lambda done, total: None,
) -> Passed | None:
    """Quantise, in place, what ``prepare_program`` gave.

    Args:
        rounding: ``gptq`` makes up for rounding errors with calibration text (see ``gptq``),
            ``nearest`` takes each weight by itself.
        calibration: generic text as tokens int64 ``[n, length]``.

    Returns:
        What the quantised program makes of the calibration text, where that passed through it.

    Raises:
        ModelError: the calibration text does not suit the model, groups do not divide the input of
            a linear, or a weight or an input is not finite, naming the linear.
    """
    passed = None
    if rounding == NEAREST:
        quantise_linears_(program, progress)
    else:
        if calibration.ndim != 2 or calibration.size == 0:
            raise ModelError(f"calibration must be tokens [n, length], not {calibration.shape}")
        vocabulary = program.embedding.weight.shape[0]
        if calibration.min() < 0 or calibration.max() >= vocabulary:
            raise ModelError(
                f"calibration holds tokens outside the model's vocabulary of {vocabulary}; "
                "tokenise it with the tokenizer of this model"
            )
        values = torch.from_numpy(surgery.values.astype(np.float32))[None]
        passed = _round_in_passing_(program, torch.from_numpy(calibration), values, progress)
    # What stayed float, such as norms: any of it would keep the model's whole file mapped.
    for parameter in program.parameters():
        parameter.data = parameter.data.clone()
    return passed


@torch.no_grad()
def _round_in_passing_(
    program: ScoreProgram, tokens: torch.Tensor, values: torch.Tensor, progress: Progress
) -> Passed:
    """Round every linear by ``gptq`` during one forward pass over ``tokens``.

    The whole text is one batch. A linear is rounded at the moment that the batch reaches it and the
    pass goes on with the rounded one. So each sees its inputs as the quantised program will give
    them, int8 activations included, and later layers make up for errors of earlier ones: what GPTQ
    does block by block, with no copy of the activations and no knowledge of how the blocks hang
    together.
    """
    check_widths(program)
    linears = {name: m for name, m in program.named_modules() if isinstance(m, nn.Linear)}
    rounded: set[str] = set()
    seen = moment = factor = torch.empty(0)  # of the last input: query, key and value share theirs

    def round_one(name: str, linear: nn.Linear, x: torch.Tensor) -> None:
        nonlocal seen, moment, factor
        weight = linear.weight
        check_finite(name, weight)
        try:
            if seen is not x:
                read = through_int8(x.reshape(-1, x.shape[-1]))
                seen, moment = x, read.t() @ read / len(read)
                del read
                factor = inverse_factor(moment)
            integers, scales = round_with_compensation(weight, moment, factor, GROUP_SIZE)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        del weight
        give_int4_(linear, integers, scales)
        rounded.add(name)
        progress(len(rounded), len(linears))

    def reached(name: str, module: nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        if name not in rounded:  # a block may be run more than once
            # Millions of small operations, none of them a mean that ``program.mean`` looks for.
            with torch._C.DisableTorchFunction():
                round_one(name, module, args[0])

    handles = [
        linear.register_forward_pre_hook(partial(reached, name))
        for name, linear in linears.items()
        if linear is not program.head
    ]
    try:
        read, states = program.own_states(tokens, values)
    finally:
        for handle in handles:
            handle.remove()
    round_one("head", program.head, read)
    return states[0].numpy(), read[0].numpy()

"""Rounds all linears of a program to int4 during one forward pass over calibration text.

The whole text is one batch. A linear is rounded at the moment that the batch reaches it and the
pass goes on with the rounded one. So each sees its inputs as the quantised program will give them,
int8 activations included, and later layers make up for errors of earlier ones: what GPTQ does block
by block, with no copy of the activations and no knowledge of how the blocks hang together.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError
from torch import nn

from ..program.score_program import ScoreProgram
from .gptq import inverse_factor, round_with_compensation
from .int4 import GROUP_SIZE, check_finite, check_widths, give_int4_, through_int8

Progress = Callable[[int, int], None]
"""Called with (linears rounded, linears in all)."""
Passed = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""For every token of a text: the states that an adapter reads, ``[G, S]``, and what the head reads,
``[G, D]``."""


class _Input:
    """What the rounding of a linear needs to know of its input."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        tokens = through_int8(x.reshape(-1, x.shape[-1]))
        self.second_moment = tokens.t() @ tokens / len(tokens)
        self.factor = inverse_factor(self.second_moment)


@torch.no_grad()
def round_by_calibration_(
    program: ScoreProgram,
    tokens: torch.Tensor,
    values: torch.Tensor,
    progress: Progress = lambda done, total: None,
) -> Passed:
    """Round, in place, every ``nn.Linear`` of ``program`` with ``seedtune.export.gptq``.

    Args:
        tokens: calibration text, int64 ``[n, length]``.
        values: the sensitive values, float32 ``[1, K]``.

    Returns:
        What the rounded program makes of the text, which has passed through it by then.

    Raises:
        ModelError: as ``check_widths``, or a weight or an input is not finite, naming the linear.
    """
    check_widths(program)
    linears = {name: m for name, m in program.named_modules() if isinstance(m, nn.Linear)}
    rounded: set[str] = set()
    known: list[_Input] = []  # of the last input: query, key and value share theirs

    def round_one(name: str, linear: nn.Linear, x: torch.Tensor) -> None:
        weight = linear.weight
        check_finite(name, weight)
        try:
            if not known or known[0].x is not x:
                known[:] = [_Input(x)]
            integers, scales = round_with_compensation(
                weight, known[0].second_moment, known[0].factor, GROUP_SIZE
            )
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        del weight
        give_int4_(linear, integers, scales)
        rounded.add(name)
        progress(len(rounded), len(linears))

    handles: list[Any] = []
    for name, linear in linears.items():
        if linear is not program.head:

            def reached(
                module: nn.Linear, args: tuple[torch.Tensor, ...], name: str = name
            ) -> None:
                if name not in rounded:  # a block may be run more than once
                    with program.mean.paused():  # millions of small operations, none of them a mean
                        round_one(name, module, args[0])

            handles.append(linear.register_forward_pre_hook(reached))
    try:
        read, states = program.own_states(tokens, values)
    finally:
        for handle in handles:
            handle.remove()
    round_one("head", program.head, read)
    return states[0].numpy(), read[0].numpy()

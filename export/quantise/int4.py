"""Number formats of the dense weights, through torchao.

Activations to int8 per token at run time, weights to int4 in groups of 32 along the input, which
XNNPACK runs natively (``qd8-f32-qb4w``).
"""

from collections.abc import Callable
from typing import Any

import torch
from seedtune.runtime.errors import ModelError
from torch import nn

from ..model.mapped_pages import give_back_freed
from ..model.stored_weight import keep_stored_
from ..quiet import quiet

GROUP_SIZE = 32
BLOCK_ROWS = 4096
"""Rows that are rounded at a time."""
_INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]

DESCRIPTION: dict[str, Any] = {
    "dense": {"scheme": "8da4w", "group_size": GROUP_SIZE},
    "head": {"scheme": "8da4w", "group_size": GROUP_SIZE},
    "embedding": {"scheme": "int8", "granularity": "row"},
}
"""What the formats are, for the manifest."""


def check_widths(program: nn.Module) -> None:
    """See that groups divide the input of every ``nn.Linear`` of ``program``.

    Raises:
        ModelError: they do not; it names the linear.
    """
    for name, module in program.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % GROUP_SIZE:
            raise ModelError(
                f"{name}: its input width {module.in_features} is not a multiple of the group "
                f"size {GROUP_SIZE}; this model cannot be exported to int4"
            )


def check_finite(name: str, weight: torch.Tensor) -> None:
    """See that a weight can be rounded.

    Raises:
        ModelError: it is not finite.
    """
    # In blocks: the question makes a float copy of what it is asked of.
    if not all(bool(torch.isfinite(rows).all()) for rows in weight.split(BLOCK_ROWS)):
        raise ModelError(f"{name}: its weights hold NaN or infinity; the model is damaged")


def quantise_linears_(
    program: nn.Module, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Quantise, in place, every ``nn.Linear``, each weight to the nearest step of its group.

    Args:
        progress: called with (linears rounded, linears in all).

    Raises:
        ModelError: as ``check_widths`` and ``check_finite``.
    """
    check_widths(program)
    linears = {name: each for name, each in program.named_modules() if isinstance(each, nn.Linear)}
    for done, (name, module) in enumerate(linears.items()):
        give_int4_(module, *_to_nearest(name, module.weight))
        progress(done + 1, len(linears))


def _to_nearest(name: str, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scales of ``weight``, as ``int4_weight`` takes them.

    In blocks of rows, which round by themselves: torchao makes float copies of what it is given,
    and a head of 170 million weights would stand there three times.
    """
    with quiet():
        from torchao.quantization import IntxUnpackedToInt8Tensor

    check_finite(name, weight)
    integers = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), weight.shape[1] // GROUP_SIZE)
    for first in range(0, len(weight), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        rounded = IntxUnpackedToInt8Tensor.from_hp(weight[rows].detach(), (1, GROUP_SIZE), _INT4)
        integers[rows], scales[rows] = rounded.qdata, rounded.scale
    return integers, scales


def through_int8(x: torch.Tensor) -> torch.Tensor:
    """What int8 leaves of activations float32 ``[tokens, width]``: zero-point and step a token."""
    low = x.amin(1, keepdim=True).clamp(max=0.0)
    step = ((x.amax(1, keepdim=True).clamp(min=0.0) - low) / 255).clamp(min=2.0**-23)
    zero = (-128 - torch.round(low / step)).clamp(-128, 127)
    return ((torch.round(x / step) + zero).clamp_(-128, 127) - zero) * step


def int4_weight(
    integers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None = None
) -> nn.Parameter:
    """The weight that ``quantise_linears_`` would give a linear, of chosen integers and scales.

    Args:
        integers: int8 ``[out, in]`` in -8..7.
        scales: float32 ``[out, in / GROUP_SIZE]``.
        zeros: int8, as many as there are scales, for who has some already.
    """
    with quiet():
        from torchao.quantization import IntxUnpackedToInt8Tensor

    weight = IntxUnpackedToInt8Tensor(
        qdata=integers,
        scale=scales,
        zero_point=torch.zeros_like(scales, dtype=torch.int8) if zeros is None else zeros,
        target_dtype=_INT4,
        block_size=(1, GROUP_SIZE),
        dtype=torch.float32,
        activation_quantization="int8_asym_per_token",
    )
    return nn.Parameter(weight, requires_grad=False)


def packed_weight(linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """What is kept of a quantised linear's weight: codes uint8 ``[out, in / 2]``, the first of two
    in the lower half, 8 for zero, and scales bfloat16 ``[out, in / GROUP_SIZE]``, as XNNPACK and
    ONNX Runtime's MatMulNBits take them. GPTQ's scales are exact in this form."""
    codes, scales = keep_stored_(linear).tensors
    return codes, scales


def give_int4_(linear: nn.Linear, integers: torch.Tensor, scales: torch.Tensor) -> None:
    """Make them (see ``int4_weight``) the weight of ``linear``, which keeps them packed."""
    codes = (integers + 8).view(torch.uint8)
    packed = codes[:, ::2] | codes[:, 1::2] << 4, scales.to(torch.bfloat16)
    keep_stored_(linear).becomes(_unpacked, *packed)
    # Else the C library keeps some 10 MB a matrix of 7 billion weights: 2.4 GB in the end.
    give_back_freed()


def _unpacked(codes: torch.Tensor, scales: torch.Tensor) -> nn.Parameter:
    """The quantised weight that is kept as ``codes`` and ``scales``."""
    integers = torch.stack([codes & 15, codes >> 4], dim=-1).view(len(codes), -1)
    return int4_weight(integers.view(torch.int8) - 8, scales.to(torch.float32))

"""Number formats of the dense weights, through torchao.

Activations to int8 per token at run time, weights to int4 in groups of 32 along the input, which
XNNPACK runs natively (``qd8-f32-qb4w``).
"""

from typing import Any

import torch
from seedtune.runtime.errors import ModelError
from torch import nn

from ..model.mapped_pages import forget
from ..quiet import quiet

GROUP_SIZE = 32
BLOCK_ROWS = 4096
"""Rows that are rounded at a time."""

DESCRIPTION: dict[str, Any] = {
    "dense": {"scheme": "8da4w", "group_size": GROUP_SIZE},
    "head": {"scheme": "8da4w", "group_size": GROUP_SIZE},
    "embedding": {"scheme": "int8", "granularity": "row"},
}
"""Of the formats, for the manifest."""


def check_linears(program: nn.Module) -> None:
    """See that every ``nn.Linear`` of ``program`` can be quantised.

    Raises:
        ModelError: an input width is not a multiple of the group size, or a weight is not finite.
    """
    for name, module in program.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if module.in_features % GROUP_SIZE:
            raise ModelError(
                f"{name}: its input width {module.in_features} is not a multiple of the group "
                f"size {GROUP_SIZE}; this model cannot be exported to int4"
            )
        # In blocks: the question makes a float copy of what it is asked of.
        if not all(bool(torch.isfinite(rows).all()) for rows in module.weight.split(BLOCK_ROWS)):
            raise ModelError(f"{name}: its weights hold NaN or infinity; the model is damaged")


def quantise_linears_(program: nn.Module) -> None:
    """Quantise, in place, every ``nn.Linear``, each weight to the nearest step of its group.

    In blocks of rows, which round by themselves: torchao makes float copies of what it is given,
    and a head of 170 million weights would stand there three times.

    Raises:
        ModelError: as ``check_linears``.
    """
    check_linears(program)
    with quiet():
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        config = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=PerGroup(GROUP_SIZE)
        )
        for module in program.modules():
            if not isinstance(module, nn.Linear):
                continue
            weight = module.weight.data
            integers = torch.empty(weight.shape, dtype=torch.int8)
            scales = torch.empty(len(weight), weight.shape[1] // GROUP_SIZE)
            for first in range(0, len(weight), BLOCK_ROWS):
                rows = slice(first, first + BLOCK_ROWS)
                part = nn.Linear(weight.shape[1], len(weight[rows]), bias=False, device="meta")
                part.weight = nn.Parameter(weight[rows], requires_grad=False)
                quantize_(part, config)
                integers[rows], scales[rows] = part.weight.qdata, part.weight.scale
            module.weight = int4_weight(integers, scales)
            forget(weight)


def through_int8(x: torch.Tensor) -> torch.Tensor:
    """What int8 leaves of activations float32 ``[tokens, width]``: zero-point and step a token."""
    low = x.amin(1, keepdim=True).clamp(max=0.0)
    step = ((x.amax(1, keepdim=True).clamp(min=0.0) - low) / 255).clamp(min=2.0**-23)
    zero = (-128 - torch.round(low / step)).clamp(-128, 127)
    return ((torch.round(x / step) + zero).clamp_(-128, 127) - zero) * step


def int4_weight(integers: torch.Tensor, scales: torch.Tensor) -> nn.Parameter:
    """The weight that ``quantise_linears_`` would give a linear, of chosen integers and scales.

    Args:
        integers: int8 ``[out, in]`` in -8..7.
        scales: float32 ``[out, in / GROUP_SIZE]``.
    """
    with quiet():
        from torchao.quantization import IntxUnpackedToInt8Tensor

    weight = IntxUnpackedToInt8Tensor(
        qdata=integers,
        scale=scales,
        zero_point=torch.zeros_like(scales, dtype=torch.int8),
        target_dtype=torch.int4,
        block_size=(1, GROUP_SIZE),
        dtype=torch.float32,
        activation_quantization="int8_asym_per_token",
    )
    return nn.Parameter(weight, requires_grad=False)


def packed_int4(weight: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 ``[out, in / 2]``, the first of two in the lower half, 8 for zero, and scales
    bfloat16 ``[out, in / GROUP_SIZE]`` of a quantised weight: as XNNPACK and ONNX Runtime's
    MatMulNBits take them. GPTQ's scales are exact in this form."""
    codes = (weight.qdata.to(torch.int16) + 8).to(torch.uint8)
    scales = weight.scale.view(len(codes), -1).to(torch.bfloat16)
    return codes[:, ::2] | codes[:, 1::2] << 4, scales

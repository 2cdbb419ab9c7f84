"""Number formats of the dense weights, through torchao.

``Int8DynamicActivationIntxWeightConfig``: activations to int8 per token at run time, weights to
int4 in groups of 32 along the input, which XNNPACK runs natively (``qd8-f32-qb4w``).
"""

from typing import Any

import torch
from seedtune.export.quiet import quiet
from seedtune.runtime.errors import ModelError
from torch import nn

GROUP_SIZE = 32


def quantise_linears_(program: nn.Module) -> dict[str, Any]:
    """Quantise, in place, every ``nn.Linear`` of ``program``; returns the manifest's description.

    Raises:
        ModelError: an input width is not a multiple of the group size, or a weight is not finite.
    """
    with quiet():
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        for name, module in program.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if module.in_features % GROUP_SIZE:
                raise ModelError(
                    f"{name}: its input width {module.in_features} is not a multiple of the group "
                    f"size {GROUP_SIZE}; this model cannot be exported to int4"
                )
            if not bool(torch.isfinite(module.weight).all()):
                raise ModelError(f"{name}: its weights hold NaN or infinity; the model is damaged")
        quantize_(
            program,
            Int8DynamicActivationIntxWeightConfig(
                weight_dtype=torch.int4, weight_granularity=PerGroup(GROUP_SIZE)
            ),
        )
    return {
        "dense": {"scheme": "8da4w", "group_size": GROUP_SIZE},
        "head": {"scheme": "8da4w", "group_size": GROUP_SIZE},
        "embedding": {"scheme": "int8", "granularity": "row"},
    }

"""Int4 products as one operator, ``seedtune::int4_linear``, for programs other than ExecuTorch's.

XNNPACK recognises a product by the operators around it; ONNX Runtime and torch take the codes as
they lie. Both read one layout, that of ONNX Runtime's ``MatMulNBits``: unsigned codes (the integer
plus 8), two in a byte, the lower half first, ``[out, groups, GROUP_SIZE / 2]``. XNNPACK's file
holds the very same bytes, so that programs of a bundle share them.

Activations stay float32: nothing is rounded at run time, unlike in ExecuTorch's program.
"""

import torch
from torch import nn

from ..quantise.int4 import GROUP_SIZE, packed_weight

NAME = "seedtune::int4_linear"
WIDE, PART = 16384, 8192
"""A matrix of more than ``WIDE`` rows, as output heads are, is multiplied ``PART`` rows at a time:
whoever unpacks it needs room for a part only (SmolLM2's head takes 113 MB in float32)."""


@torch.library.custom_op(NAME, mutates_args=())
def int4_linear(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``x`` float32 ``[..., in]`` times the matrix, float32 ``[..., out]``.

    Args:
        packed: uint8 ``[out, groups, GROUP_SIZE / 2]``.
        scales: bfloat16 ``[out, groups]``.
    """
    out, groups, _ = packed.shape
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).view(out, groups, GROUP_SIZE)
    weight = (codes.to(torch.float32) - 8.0) * scales.to(torch.float32)[..., None]
    return nn.functional.linear(x, weight.view(out, groups * GROUP_SIZE))


@int4_linear.register_fake
def _(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


class Int4Linear(nn.Module):
    """An ``nn.Linear`` whose quantised weight goes through the operator."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed, scales = packed_weight(linear)
        out = len(packed)
        packed = packed.reshape(out, -1, GROUP_SIZE // 2)
        rows = PART if out > WIDE else out
        parts = list(zip(packed.split(rows), scales.split(rows), strict=True))
        self.parts = len(parts)
        for part, own in enumerate(parts):
            # Names whose order is that of the parts: files then hold them one after another.
            for name, tensor in zip(("packed", "scales"), own, strict=True):
                whole = tensor if self.parts == 1 else tensor.clone()
                self.register_buffer(f"{name}_{part:03}", whole)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [
            torch.ops.seedtune.int4_linear(
                x, getattr(self, f"packed_{part:03}"), getattr(self, f"scales_{part:03}")
            )
            for part in range(self.parts)
        ]
        y = found[0] if self.parts == 1 else torch.cat(found, dim=-1)
        return y if self.bias is None else y + self.bias


def through_int4_operator_(program: nn.Module) -> None:
    """Replace, in place, every quantised ``nn.Linear`` of ``program``."""
    for name, module in list(program.named_modules()):
        if isinstance(module, nn.Linear):
            program.set_submodule(name, Int4Linear(module))

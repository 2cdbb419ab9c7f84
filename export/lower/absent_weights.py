"""Int4 weights that a program is lowered without.

Lowering hands each weight from pass to pass; some of them copy it, and none looks into it before
XNNPACK's visitors write it down: a model's matrices stood in memory six times. So a program is
traced with weights that have a shape and an address, and no memory, since nobody touches what lies
there. Where a visitor meets the address again, the codes and scales that are packed already go from
where they are into the program's file.
"""

import contextlib
import hashlib
import mmap
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    ConstantDataOffset,
    PerChannelGroupQuant,
)
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import (
    CONSTANT_TENSOR_ALIGNMENT,
)
from executorch.backends.xnnpack.utils.utils import get_param_tensor
from executorch.backends.xnnpack.utils.xnnpack_constants import UINT64_MAX
from torch import nn

from ..model.mapped_pages import forget
from ..model.stored_weight import standing_in, stored_modules
from ..quantise.int4 import GROUP_SIZE, int4_weight, packed_weight
from .constants_in_place import InPlace

_STEP = 64
"""Bytes from one tensor's address to the next one's."""


@contextlib.contextmanager
def absent_weights(program: nn.Module) -> Iterator[None]:
    """Inside, the int4 linears of ``program`` have weights without memory, to be traced with, and
    XNNPACK's visitors write the packed ones where they meet them."""
    linears = list(stored_modules(program))
    largest = max((each.out_features * each.in_features for each in linears), default=0)
    # Tensors overlap: there is nothing in them, and so no system refuses the room.
    nowhere = mmap.mmap(-1, largest + 3 * _STEP * len(linears) + 1)
    places = iter(range(0, 3 * _STEP * len(linears), _STEP))
    packed: dict[int, tuple[str, _Bytes, _Bytes]] = {}
    weights: dict[nn.Module, nn.Parameter] = {}

    def absent(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        flat = torch.frombuffer(nowhere, dtype=dtype, count=count, offset=next(places))
        return flat.view(shape)

    for linear in linears:
        out, width = linear.out_features, linear.in_features
        codes = absent(torch.int8, out, width)
        scales = absent(torch.float32, out, width // GROUP_SIZE)
        zeros = absent(torch.int8, out, width // GROUP_SIZE)
        packed[codes.data_ptr()] = _packed(linear)
        weights[linear] = int4_weight(codes, scales, zeros)

    def of(visitor: Any, quant: Any) -> tuple[str, _Bytes, _Bytes] | None:
        if quant is None or not quant.per_channel_group:
            return None
        weight = get_param_tensor(visitor.exported_program, quant.q_input)
        assert weight is not None
        return packed[weight.data_ptr()]

    write, describe = NodeVisitor.get_serialized_buffer_index, NodeVisitor.get_quant_params

    def write_codes(visitor: Any, tensor: Any, graph: Any, *rest: Any) -> Any:
        _, _, _, quant, *_ = rest
        found = of(visitor, quant)
        if found is None:
            return write(visitor, tensor, graph, *rest)
        name, codes, _ = found
        return _add(visitor, graph, name, codes)

    def write_scales(visitor: Any, quant: Any, graph: Any, *rest: Any) -> Any:
        found = of(visitor, quant)
        if found is None:
            return describe(visitor, quant, graph, *rest)
        _, _, scales = found
        place = _add(visitor, graph, f"scale_{scales.sha256().hex()}", scales)
        return PerChannelGroupQuant(
            scale=[],
            channel_dim=quant.axis,
            group_size=quant.group_size,
            scale_buffer_idx=place,
            num_scales=quant.scale.numel(),
        )

    with (
        standing_in(weights),
        patch.object(NodeVisitor, "get_serialized_buffer_index", write_codes),
        patch.object(NodeVisitor, "get_quant_params", write_scales),
    ):
        yield


def _packed(linear: nn.Linear) -> "tuple[str, _Bytes, _Bytes]":
    """A weight's name in the file, codes and scales.

    executorch names it after the codes alone, and XNNPACK's cache of packed weights, which methods
    share, goes by that name: of two weights with equal codes it would give the second the first's
    scales.
    """
    codes, scales = (_Bytes(each) for each in packed_weight(linear))
    digest = hashlib.sha256(codes.content.data)
    codes.digest = digest.digest()
    digest.update(scales.tensor.to(torch.float32).numpy().data)
    for each in (codes, scales):
        forget(each.tensor)
    return digest.hexdigest(), codes, scales


def _add(visitor: Any, graph: Any, name: str, data: "_Bytes") -> int:
    graph.constant_data.append(
        ConstantDataOffset(offset=UINT64_MAX, size=len(data), named_key=name)
    )
    visitor._named_data_store.add_named_data(name, data, CONSTANT_TENSOR_ALIGNMENT)
    return len(graph.constant_data) - 1


class _Bytes(InPlace):
    """Those of a tensor, whose pages are given back once they are written."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.view(torch.uint8).numpy())
        self.tensor = tensor

    def write_to_file(self, outfile: Any) -> None:
        super().write_to_file(outfile)
        forget(self.tensor)

"""Int4 weights that a program is lowered without.

Lowering hands each weight from pass to pass; some of them copy it, and none looks into it before
XNNPACK's visitors write it down: a model's matrices stood in memory six times. So a program is
traced with weights that have a shape and an address, and no memory, since nobody touches what lies
there. Where a visitor meets the address again, the codes and scales that are packed already go from
where they are into the program's file.
"""

import contextlib
import functools
import hashlib
import inspect
import mmap
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
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
from ..model.stored_weight import standing_in
from ..quantise.int4 import GROUP_SIZE, int4_weight, packed_weight
from .constants_in_place import InPlace

_STEP = 64
"""Bytes from one tensor's address to the next one's."""


class AbsentWeights:
    """The packed weights of linears, found by the addresses that stand in for them."""

    def __init__(self, linears: Iterable[nn.Linear]) -> None:
        """Of linears whose int4 weight is kept packed (see ``stored_weight``)."""
        own = list(linears)
        largest = max((each.out_features * each.in_features for each in own), default=0)
        # Tensors overlap: there is nothing in them, and so no system refuses the room.
        self._nowhere = mmap.mmap(-1, largest + 3 * _STEP * len(own) + 1)
        self._taken = 0
        self._packed: dict[int, tuple[_Bytes, _Bytes, str]] = {}
        self._weights: dict[nn.Module, nn.Parameter] = {}
        for linear in own:
            out, width = linear.out_features, linear.in_features
            codes = self._address(torch.int8, out, width)
            scales = self._address(torch.float32, out, width // GROUP_SIZE)
            zeros = self._address(torch.int8, out, width // GROUP_SIZE)
            self._packed[codes.data_ptr()] = _packed(linear)
            self._weights[linear] = int4_weight(codes, scales, zeros)

    def standing_in(self) -> AbstractContextManager[None]:
        """Inside, the linears have weights without memory, to be traced with."""
        return standing_in(self._weights)

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Inside, XNNPACK's visitors write the packed weights."""
        data, params = NodeVisitor.get_serialized_buffer_index, NodeVisitor.get_quant_params

        @functools.wraps(data)
        def write_codes(visitor: Any, *args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(data).bind(visitor, *args, **kwargs).arguments
            found = self._of(visitor, given.get("quant_params"))
            if found is None:
                return data(visitor, *args, **kwargs)
            codes, _, name = found
            return _add(visitor, given["xnn_graph"], name, codes)

        def write_scales(visitor: Any, quant: Any, graph: Any, *args: Any) -> Any:
            found = self._of(visitor, quant)
            if found is None:
                return params(visitor, quant, graph, *args)
            _, scales, _ = found
            place = _add(visitor, graph, f"scale_{scales.sha256().hex()}", scales)
            return PerChannelGroupQuant(
                scale=[],
                channel_dim=quant.axis,
                group_size=quant.group_size,
                scale_buffer_idx=place,
                num_scales=quant.scale.numel(),
            )

        with (
            patch.object(NodeVisitor, "get_serialized_buffer_index", write_codes),
            patch.object(NodeVisitor, "get_quant_params", write_scales),
        ):
            yield

    def _address(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        found = torch.frombuffer(self._nowhere, dtype=dtype, count=count, offset=self._taken)
        self._taken += _STEP
        return found.view(shape)

    def _of(self, visitor: Any, quant: Any) -> "tuple[_Bytes, _Bytes, str] | None":
        if not self._packed or quant is None or not quant.per_channel_group:
            return None
        weight = get_param_tensor(visitor.exported_program, quant.q_input)
        assert weight is not None
        return self._packed[weight.data_ptr()]


def _packed(linear: nn.Linear) -> "tuple[_Bytes, _Bytes, str]":
    """Codes, scales and the name in the file: see ``_scales_in_names`` in ``lower``."""
    codes, scales = (_Bytes(each) for each in packed_weight(linear))
    digest = hashlib.sha256(codes.content.data)
    codes.digest = digest.digest()
    digest.update(scales.tensor.to(torch.float32).numpy().data)
    for each in (codes, scales):
        forget(each.tensor)
    return codes, scales, digest.hexdigest()


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

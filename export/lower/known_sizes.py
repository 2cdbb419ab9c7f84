"""Sizes that follow from others are not derived again, operator by operator, on fake tensors."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses import fake_impls
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def known_sizes() -> Iterator[None]:
    """Let passes that replace node by node keep the sizes that the graph already has.

    An ``ExportPass`` re-runs every operator on fake tensors to learn its output's sizes. The passes
    used here change none but those of a concatenation, which XNNPACK wants in parts of five.
    """
    from executorch.exir import pass_base
    from torch._export import pass_base as torch_pass_base

    def keeping(derive: Any, proxy_value: type, views_end: bool) -> Any:
        def keep(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            known = meta.data.get("val")
            items = known if isinstance(known, (tuple, list)) else (known,)
            sized = all(isinstance(x, torch.Tensor) for x in items)
            if kind != "call_function" or not sized or "aten.cat." in str(target):
                return derive(self, kind, target, args, kwargs, meta)
            if views_end and not all(_in_order(x) for x in items):
                if not isinstance(known, torch.Tensor):
                    return derive(self, kind, target, args, kwargs, meta)
                known = known.new_empty(known.shape)
            args, kwargs = pytree.tree_map_only(proxy_value, lambda x: x.proxy, (args, kwargs))
            proxy = self.tracer.create_proxy(kind, target, args, kwargs)
            proxy.node.meta.update(meta.data)
            if known is not meta.data["val"] or "tensor_meta" not in meta.data:
                self.tracer.set_metadata(proxy.node, known)
            return proxy_value(known, proxy)

        return keep

    ours = pass_base._ExportPassBase
    torchs = torch_pass_base._ExportPassBaseDeprecatedDoNotUse
    value = torch_pass_base.ProxyValue  # type: ignore[attr-defined]
    with (
        patch.object(ours, "_fx", keeping(ours._fx, pass_base.ProxyValue, False)),
        # torch's only pass here turns views into copies: from there on all strides are in order.
        patch.object(torchs, "_fx", keeping(torchs._fx, value, True)),
    ):
        yield


def _in_order(x: torch.Tensor) -> bool:
    """Whether ``x`` is contiguous, judged at the example's sizes (no symbolic guard is made)."""
    expected = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        size, stride = (int(n) if isinstance(n, int) else n.node.hint for n in (size, stride))
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


@contextlib.contextmanager
def known_quantisation() -> Iterator[None]:
    """Let torchao's operators for int8 activations say what they give.

    Each is made of some twelve others, and a fake tensor that goes through it would go through all
    of these, at every pass over the graph.
    """
    from torchao.quantization import quant_primitives  # noqa: F401  has them registered

    operators = torch.ops.torchao
    rules = {
        operators.choose_qparams_affine.default: _parameters,
        operators.quantize_affine.default: _quantised,
        operators.dequantize_affine.default: _dequantised,
    }
    known = fake_impls.op_implementations_dict
    known.update(rules)
    try:
        yield
    finally:
        for operator in rules:
            known.pop(operator, None)  # torch may have done so


def _parameters(
    mode: Any,
    operator: Any,
    input: torch.Tensor,
    mapping_type: str,
    block_size: list[int],
    target_dtype: torch.dtype,
    quant_min: float | None = None,
    quant_max: float | None = None,
    eps: float | None = None,
    scale_dtype: torch.dtype | None = None,
    zero_point_dtype: torch.dtype | None = None,
    keepdim: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A scale and a zero point for each block of ``input``."""
    sizes: list[int] = []
    for size, block in zip(input.shape, block_size, strict=True):
        if isinstance(block, int) and block == 1:
            sizes.append(size)
        elif block != size:
            sizes.append(size // block)
        elif keepdim:
            sizes.append(1)
    if zero_point_dtype is None and mapping_type == "ASYMMETRIC":
        zero_point_dtype = torch.int32
    with mode:
        scales = input.new_empty(sizes, dtype=scale_dtype)
        return scales, input.new_empty(sizes, dtype=zero_point_dtype)


def _quantised(
    mode: Any,
    operator: Any,
    input: torch.Tensor,
    block_size: list[int],
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    output_dtype: torch.dtype,
    *bounds: Any,
    **named_bounds: Any,
) -> torch.Tensor:
    with mode:
        return torch.empty_like(input, dtype=output_dtype)


def _dequantised(
    mode: Any,
    operator: Any,
    input: torch.Tensor,
    block_size: list[int],
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    input_dtype: torch.dtype,
    quant_min: float | None = None,
    quant_max: float | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    with mode:
        return torch.empty_like(input, dtype=output_dtype)

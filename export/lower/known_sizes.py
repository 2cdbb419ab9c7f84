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

    def of_each_token(mode: Any, operator: Any, x: torch.Tensor, *asked: Any, **named: Any) -> Any:
        with mode:
            scales = x.new_empty(x.shape[:-1])
            return scales, torch.empty_like(scales, dtype=torch.int8)

    def alike(dtype: torch.dtype) -> Any:
        def given(mode: Any, operator: Any, x: torch.Tensor, *asked: Any, **named: Any) -> Any:
            with mode:
                return torch.empty_like(x, dtype=dtype)

        return given

    operators = torch.ops.torchao
    rules = {
        operators.choose_qparams_affine.default: of_each_token,
        operators.quantize_affine.default: alike(torch.int8),
        operators.dequantize_affine.default: alike(torch.float32),
    }
    known = fake_impls.op_implementations_dict
    known.update(rules)
    try:
        yield
    finally:
        for operator in rules:
            known.pop(operator, None)  # torch may have done so

"""Operators that a torch program may name: those that exports of decoders use, none that reads or
writes a file, changes what it is given, or returns memory that nothing was written to.

``export.lower.torch_graph`` writes no others. A new architecture may need one: add it here if it
only computes.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch

_ATEN = frozenset(
    """
    __and__.Tensor __or__.Tensor add.Tensor alias.default arange.default arange.start bmm.default
    cat.default chunk.default clone.default cos.default div.Tensor dropout.default embedding.default
    expand.default flatten.using_ints gather.default ge.Scalar ge.Tensor gelu.default
    index_select.default layer_norm.default le.Tensor linear.default log_softmax.int lt.Scalar
    mul.Tensor neg.default ones.default permute.default pow.Tensor_Scalar relu.default
    repeat.default repeat_interleave.self_int reshape.default rsqrt.default scatter.src silu.default
    sin.default slice.Tensor softmax.int split_with_sizes.default stack.default sub.Tensor
    sum.dim_IntList sym_size.int tanh.default to.dtype to.dtype_layout transpose.int
    type_as.default unsqueeze.default view.default where.Scalar
    """.split()  # noqa: SIM905
)
INT4_LINEAR, ADD_PRODUCT = "seedtune.int4_linear.default", "seedtune.add_product"
"""Operators of this project; see ``torch_program``."""
_SIZES: dict[str, Callable[[int, int], int]] = {
    "size.mul": operator.mul,
    "size.add": operator.add,
    "size.sub": operator.sub,
    "size.div": operator.floordiv,
}
_LARGEST_SIZE = 1 << 62
_FORMATS = ("contiguous_format", "preserve_format")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool),
    )
}
"""Number formats that a program may name."""


def may_name(target: str) -> bool:
    """Whether programs may have the operator; see the module's text."""
    space, _, name = target.partition(".")
    others = (*_SIZES, "getitem", INT4_LINEAR, ADD_PRODUCT)
    return target in others or (space == "aten" and name in _ATEN)


def operator_of(target: str) -> Callable[..., Any]:
    """What computes an operator that programs ``may_name``, but for those of this project.

    Raises:
        LookupError: this torch has it not.
    """
    if target in _SIZES:
        return _of_sizes(_SIZES[target])
    if target == "getitem":
        return _getitem
    _, name, overload = target.split(".")
    packet = getattr(torch.ops.aten, name, None)
    found: Callable[..., Any] | None = getattr(packet, overload, None)
    if found is None:
        raise LookupError(f"torch {torch.__version__} has no operator {target}; update torch")
    return found


def memory_format(name: str) -> torch.memory_format:
    """A layout by its name in torch.

    Raises:
        LookupError: programs may not name it.
    """
    if name not in _FORMATS:
        raise LookupError(f"memory format {name!r:.40} is none of {', '.join(_FORMATS)}")
    found: torch.memory_format = getattr(torch, name)
    return found


def _of_sizes(function: Callable[[int, int], int]) -> Callable[[Any, Any], int]:
    def compute(a: Any, b: Any) -> int:
        if type(a) is not int or type(b) is not int:
            raise TypeError("sizes are integers")
        found = function(a, b)
        if abs(found) > _LARGEST_SIZE:
            raise OverflowError(f"a size of {found.bit_length()} bits")
        return found

    return compute


def _getitem(several: Any, which: Any) -> torch.Tensor:
    """One of the tensors that an operator gave."""
    if not isinstance(several, (list, tuple)) or type(which) is not int:
        raise TypeError("getitem takes one of several tensors")
    found: torch.Tensor = several[which]
    return found

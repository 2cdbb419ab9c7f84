"""The largest sizes of a pass: how much memory each tensor of the program may need.

ExecuTorch plans a tensor for the product of its axes' bounds. With up to 32 probes that would be 16
times the memory of two, though a pass of many probes has few tokens of each. At run time it only
compares the number of elements with the planned one. So a tensor is planned for the most elements
that it has in any pass which ``Bounds`` allow: ``probes`` times ``tokens`` and ``positions`` in
all, however they are shared out among the probes.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from seedtune.runtime.bundle import Bounds
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree


class PassSizes:
    """Sizes of the corner cases among the allowed passes, for the symbols of one traced program."""

    def __init__(self, traced: ExportedProgram, bounds: Bounds) -> None:
        names = _axis_names(traced)
        self._corners = [
            {symbol: sizes[name] for symbol, name in names.items()} for sizes in _corners(bounds)
        ]
        self._known: dict[Any, tuple[int, ...]] = {}

    def usual(self, shape: Iterable[Any]) -> list[int]:
        """A shape in the pass of ``bounds.probes`` with as many full rows as there may be."""
        return self._at(shape, 0)

    def corner_of_most(self, shape: Iterable[Any]) -> int:
        """Number of the corner in which a tensor of that shape has the most elements."""
        shape = list(shape)
        numbers = range(len(self._corners))
        return max(numbers, key=lambda corner: math.prod(self._at(shape, corner)))

    def planning_pass(self) -> Any:
        """A pass for ``ExecutorchBackendConfig.sym_shape_eval_pass``."""
        from executorch.exir.tensor import TensorSpec
        from torch.fx.passes.infra.pass_base import PassBase, PassResult

        sizes = self

        class PlanForMost(PassBase):
            def call(self, module: Any) -> Any:
                for part in module.modules():
                    for node in getattr(getattr(part, "graph", None), "nodes", ()):
                        for spec in pytree.tree_leaves(node.meta.get("spec", ())):
                            if isinstance(spec, TensorSpec):
                                corner = sizes.corner_of_most(spec.shape)
                                spec.stride = sizes._at(spec.stride, corner)
                                spec.shape = sizes._at(spec.shape, corner)
                return PassResult(module, True)

        return PlanForMost()

    def _at(self, shape: Iterable[Any], corner: int) -> list[int]:
        return [n if isinstance(n, int) else self._values(n.node.expr)[corner] for n in shape]

    def _values(self, size: Any) -> tuple[int, ...]:
        if size not in self._known:
            self._known[size] = tuple(int(size.subs(corner)) for corner in self._corners)
        return self._known[size]


def _corners(bounds: Bounds) -> Iterator[dict[str, int]]:
    """Allowed passes that between them have the most of everything; the usual one first."""
    tokens, positions = bounds.probes * bounds.tokens, bounds.probes * bounds.positions
    most = bounds.probes_at_most
    counts = {bounds.probes, most, *(2**n for n in range(most.bit_length()))}
    for probes in sorted(counts, key=lambda count: (count != bounds.probes, count)):
        each = min(bounds.tokens, tokens // probes)
        for length in sorted({bounds.length, 2, min(bounds.length, each)}, reverse=True):
            rows = each // length
            if length >= 2 and rows >= 1:
                scored = max(1, min(bounds.positions, positions // probes))
                yield {"P": probes, "B": rows, "T": length, "N": scored, "C": bounds.candidates}


def _axis_names(traced: ExportedProgram) -> dict[Any, str]:
    """The name of each dynamic axis's symbol; equal axes of two inputs may have two symbols."""
    axes = {"tokens": "PBT", "positions": "PN", "candidates": "PNC", "values": "P"}
    found: dict[Any, str] = {}
    for node in traced.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        for name, size in zip(axes.get(node.name, ""), shape, strict=False):
            if not isinstance(size, int):
                found[size.node.expr] = name
    return found

"""Operators that are made of others, broken up one by one.

``ExportedProgram.run_decompositions`` traces the whole graph anew, twice, for a few operators of
each block. Here each of them is traced by itself, once for each kind of inputs (blocks are alike),
and what it is made of is copied to where it stood. All other nodes stay as they are.
"""

import contextlib
import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._export.utils import _is_cia_op, _special_op_to_preserve_cia
from torch._functorch.aot_autograd import aot_export_module
from torch._guards import detect_fake_mode
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export._trace import _ignore_backend_decomps
from torch.export.exported_program import (
    _override_composite_implicit_decomp,
    _split_decomp_table_to_cia_and_python_decomp,
)
from torch.export.graph_signature import ExportGraphSignature, OutputKind
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import map_arg
from torch.fx.traceback import NodeSource, NodeSourceAction

from .plain_inputs import has_plain_inputs, place_inputs

_of_whole_graph: Callable[..., ExportedProgram] = ExportedProgram.run_decompositions


class _NotAlone(Exception):
    """What an operator is made of cannot be copied."""


def decomposed(traced: ExportedProgram, table: Mapping[Any, Any]) -> ExportedProgram:
    """What ``traced.run_decompositions(table)`` gives. That is asked where nodes do more than
    compute: write into a tensor, branch, or make a size that depends on values."""
    if _only_computes(traced):
        with contextlib.suppress(_NotAlone):
            return _decomposed(traced, dict(table))
    return _of_whole_graph(traced, dict(table))


def _only_computes(traced: ExportedProgram) -> bool:
    for node in traced.graph.nodes:
        if node.op == "get_attr" or isinstance(node.target, HigherOrderOperator):
            return False
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            return False
    return has_plain_inputs(traced) and all(
        spec.kind is OutputKind.USER_OUTPUT for spec in traced.graph_signature.output_specs
    )


def _decomposed(traced: ExportedProgram, table: dict[Any, Any]) -> ExportedProgram:
    signature, graph = traced.graph_signature, Graph()
    mode = detect_fake_mode([node.meta.get("val") for node in traced.graph.nodes])
    assert mode is not None  # its sizes are symbolic
    specs, state, now = place_inputs(traced, graph, mode)
    implicit, explicit = _split_decomp_table_to_cia_and_python_decomp(table)
    walk = _Walk(graph, now, implicit, explicit)
    with mode, _ignore_backend_decomps(), _override_composite_implicit_decomp(implicit):
        for node in traced.graph.nodes:
            if node not in now:
                walk.place(node)
    graph.eliminate_dead_code()
    values: Any = graph.output_node().args[0]
    outputs = [
        replace(spec, arg=replace(spec.arg, name=value.name)) if isinstance(value, Node) else spec
        for spec, value in zip(signature.output_specs, values, strict=True)
    ]
    calls = copy.deepcopy(traced.module_call_graph)
    names = {old.name: new.name for old, new in now.items() if isinstance(new, Node)}
    for call in calls:
        for each in (*call.signature.inputs, *call.signature.outputs) if call.signature else ():
            each.name = names.get(each.name, each.name)
    found = ExportedProgram(
        root=nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(specs, outputs),
        state_dict=state,
        range_constraints=dict(traced.range_constraints),
        module_call_graph=calls,
        example_inputs=traced.example_inputs,
        constants=traced.constants,
    )
    found.graph_module.meta.update(traced.graph_module.meta)
    return found


class _Walk:
    """From the nodes of one graph, in order, to those of a new one."""

    def __init__(
        self, graph: Graph, now: dict[Node, Any], implicit: dict[Any, Any], explicit: dict[Any, Any]
    ) -> None:
        """Take what stands for nodes so far, and rules by operator: ``implicit`` for those that
        are made of others by their definition, ``explicit`` for others."""
        self._graph, self._now, self._implicit, self._explicit = graph, now, implicit, explicit
        self._pieces: dict[Any, Graph] = {}
        self._sizes: dict[Any, Node] = {}
        """The node of a size, by its formula: none is computed twice."""

    def place(self, node: Node) -> None:
        """Put into the new graph what stands for ``node``, whose inputs are there."""
        of: Any = node.args[0] if node.args and node.op == "call_function" else None
        # The graph that is lowered numbers operators by what they come from.
        source = of if node.target is operator.getitem else node
        made_from = NodeSource(source, "decomposed", NodeSourceAction.CREATE)
        meta = {**node.meta, "from_node": [made_from]}
        several = self._now[of] if isinstance(of, Node) else None
        if isinstance(several, (dict, list)):
            self._now[node] = several[node.args[1]]  # type: ignore[index]
        elif self._is_composed(node.target):
            self._now[node] = self._in_pieces(node, meta)
        else:
            self._now[node] = self._copy(node, self._now, meta)

    def _is_composed(self, target: Any) -> bool:
        if not isinstance(target, OpOverload):  # arithmetic on sizes, or the output
            return False
        if target in self._implicit:
            return self._implicit[target] is not _special_op_to_preserve_cia
        return target in self._explicit or _is_cia_op(target)

    def _copy(self, node: Node, now: dict[Node, Any], meta: dict[str, Any]) -> Node:
        value = meta.get("val")
        formula = _formula(value) if isinstance(value, torch.SymInt) else None
        if formula in self._sizes:
            return self._sizes[formula]
        new = self._graph.node_copy(node, now.__getitem__)
        new.meta = dict(meta)
        if formula is not None:
            self._sizes[formula] = new
        return new

    def _in_pieces(self, node: Node, meta: dict[str, Any]) -> Any:
        """Copy what ``node`` is made of; what stands for its output, or for each of several."""
        asked = map_arg((node.args, node.kwargs), self._now.__getitem__)
        inputs: dict[Node, int] = {}
        map_arg(asked, lambda each: inputs.setdefault(each, len(inputs)))
        told = repr(map_arg(asked, lambda each: f"%{inputs[each]}"))
        key = node.target, told, *(_described(each.meta["val"]) for each in inputs)
        if key not in self._pieces:
            self._pieces[key] = self._traced(node.target, asked, inputs)
        piece = self._pieces[key]
        now = dict(zip(piece.find_nodes(op="placeholder"), inputs, strict=True))
        for each in piece.nodes:
            if each.op == "call_function":
                made = {
                    name: each.meta[name] for name in ("val", "tensor_meta") if name in each.meta
                }
                now[each] = self._copy(each, now, {**meta, **made})
        given: Any = piece.output_node().args[0]
        outputs: Any = map_arg(list(given), now.__getitem__)
        return outputs if isinstance(node.meta["val"], (list, tuple)) else outputs[0]

    def _traced(self, target: Any, asked: Any, inputs: dict[Node, int]) -> Graph:
        def call(*given: Any) -> tuple[Any, ...]:
            args, kwargs = map_arg(asked, lambda each: given[inputs[each]])
            out = target(*args, **kwargs)
            return tuple(out) if isinstance(out, (list, tuple)) else (out,)

        module = nn.Module()
        module.forward = call
        values = [each.meta["val"] for each in inputs]
        # Detached: the same tensor twice would be traced as one input.
        alone = [each.detach() if isinstance(each, torch.Tensor) else each for each in values]
        found: Any = aot_export_module(
            module, alone, trace_joint=False, decompositions=self._explicit
        )
        piece: Graph = found[0].graph
        piece.eliminate_dead_code()
        known = set().union(*map(free_unbacked_symbols, values))
        for each in piece.nodes:
            if each.op == "get_attr" or free_unbacked_symbols(each.meta.get("val")) - known:
                raise _NotAlone  # of the second, every copy would need its own
        return piece


def _described(value: Any) -> Any:
    """All of an input that what is traced may depend on."""
    if not isinstance(value, torch.Tensor):
        return _formula(value)
    sizes = *value.shape, *value.stride(), value.storage_offset()
    return value.dtype, value.device, *map(_formula, sizes)


def _formula(value: Any) -> Any:
    symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
    return value.node.expr if symbolic else value

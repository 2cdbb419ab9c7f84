"""A graph's inputs when each weight that is made of tensors becomes these tensors.

Names and order are those of ``ExportedProgram.run_decompositions``: the order is that in which a
program's file numbers its tensors.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._functorch._aot_autograd.subclass_parametrization import (
    unwrap_tensor_subclass_parameters,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.export.unflatten import _assign_attr, _AttrKind
from torch.fx import Graph, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_INNER = torch.ops.export.access_subclass_inner_tensor.default
_HELD = {
    InputKind.PARAMETER: _AttrKind.PARAMETER,
    InputKind.BUFFER: _AttrKind.BUFFER,
    InputKind.CONSTANT_TENSOR: _AttrKind.BUFFER,
}


def has_plain_inputs(traced: ExportedProgram) -> bool:
    """Whether ``place_inputs`` can place all: tensors, those made of others only looked into."""
    tensors = {**traced.state_dict, **traced.constants}
    for spec, node in _inputs(traced):
        if spec.kind not in (*_HELD, InputKind.USER_INPUT):
            return False
        if not _only_looked_into(node, tensors.get(spec.target, node.meta["val"])):
            return False
    return True


def _only_looked_into(node: Node, tensor: Any) -> bool:
    return not is_traceable_wrapper_subclass(tensor) or all(
        user.target is _INNER and _only_looked_into(user, getattr(tensor, str(user.args[1])))
        for user in node.users
    )


def place_inputs(
    traced: ExportedProgram, graph: Graph, mode: FakeTensorMode
) -> tuple[list[InputSpec], dict[str, Any], dict[Node, Any]]:
    """Give ``graph`` the placeholders of ``traced``.

    Returns:
        Their specs, the tensors that they stand for, and by placeholder of ``traced`` the new one,
        or the new ones by attribute.
    """
    tensors, state = {**traced.state_dict, **traced.constants}, dict(traced.state_dict)
    held = {spec.target: (spec, node) for spec, node in _inputs(traced) if spec.kind in _HELD}
    own = [spec for spec, _ in held.values() if spec.kind is not InputKind.CONSTANT_TENSOR]
    constants = [spec for spec, _ in held.values() if spec.kind is InputKind.CONSTANT_TENSOR]
    tree = nn.Module()
    for spec in (*own, *constants):
        _assign_attr(tensors[spec.target], tree, str(spec.target), _HELD[spec.kind], True)
    unwrap_tensor_subclass_parameters(tree)
    specs: list[InputSpec] = []
    now: dict[Node, Any] = {}
    inner: dict[str, list[Node]] = {}
    for name, tensor in (
        *tree.named_parameters(remove_duplicate=False),
        *tree.named_buffers(remove_duplicate=False),
    ):
        if name in held:
            spec, node = held[name]
            now[node] = new = graph.node_copy(node)
            specs.append(replace(spec, arg=replace(spec.arg, name=new.name)))
            continue
        owner, _, field = f".{name}".rpartition(".parametrizations.")
        whole = f"{owner}.{field.rpartition('.')[0]}"[1:]
        spec, node = held[whole]
        new = graph.placeholder(f"{node.name[0]}_{name.replace('.', '_')}")
        new.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
        specs.append(replace(spec, arg=replace(spec.arg, name=new.name), target=name))
        inner.setdefault(whole, []).append(new)
        state.pop(whole, None)
        state[name] = tensor
    for whole, nodes in inner.items():
        _, node = held[whole]
        now[node] = _by_attribute(tensors[whole], iter(nodes))
    for spec, node in _inputs(traced):
        if spec.kind is InputKind.USER_INPUT:
            now[node] = new = graph.node_copy(node)  # not every name is free for a node
            specs.append(replace(spec, arg=replace(spec.arg, name=new.name)))
    return specs, state, now


def _inputs(traced: ExportedProgram) -> Iterator[tuple[InputSpec, Node]]:
    placeholders = traced.graph.find_nodes(op="placeholder")
    return zip(traced.graph_signature.input_specs, placeholders, strict=True)


def _by_attribute(tensor: torch.Tensor, nodes: Iterator[Node]) -> Any:
    """The nodes of what ``tensor`` is made of, by its attributes' names."""
    if not is_traceable_wrapper_subclass(tensor):
        return next(nodes)
    names, _ = tensor.__tensor_flatten__()
    return {name: _by_attribute(getattr(tensor, name), nodes) for name in names}

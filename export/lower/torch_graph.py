"""From a traced program to the JSON that the torch engine runs: operators in order, no code.

torch's own file of an exported program is bound to the version that wrote it and brings the weights
along. A decoder needs little of it: names of aten operators, their arguments, and where tensors
stand. ``runtime.engines.torch_program`` reads it and says what the fields are.
"""

import json
import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from seedtune.runtime.bundle import Program
from seedtune.runtime.engines.torch_operators import ADD_PRODUCT, may_name
from seedtune.runtime.engines.torch_program import VERSION
from seedtune.runtime.errors import ModelError
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from .stored_weights import Place, StoredWeights
from .trace import input_name

FORMAT = "torch"
FILE = "program.json"
_SIZES = {operator.mul: "mul", operator.add: "add", operator.sub: "sub", operator.floordiv: "div"}
"""Arithmetic on sizes."""
_NO_EFFECT = ("aten._assert_tensor_metadata.default", "aten.sym_constrain_range_for_size.default")


class TorchProgram:
    """A program as a list of operators whose tensors are still to be placed."""

    def __init__(
        self,
        traced: ExportedProgram,
        weights: StoredWeights,
        methods: Mapping[str, Mapping[str, Any]],
        terms: int,
    ) -> None:
        """Read ``traced``; tensors go to ``weights``. ``methods`` are as in ``Program``, and
        ``terms`` is how many it takes.

        Raises:
            ModelError: it has something that the form does not know.
        """
        self._methods = methods
        self._inputs: list[list[Any]] = []
        self._tensors: dict[str, tuple[str, torch.Tensor]] = {}
        self._nodes: list[list[Any]] = []
        self._outputs: list[list[Any]] = []
        state = {**dict(traced.named_parameters()), **dict(traced.named_buffers())}
        specs = iter(traced.graph_signature.input_specs)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                spec = next(specs)
                if spec.kind is InputKind.USER_INPUT:
                    node._rename(input_name(node.name, terms))
                    self._inputs.append(_described(node))
                elif node.users:
                    tensor = state.get(spec.target)
                    tensor = traced.constants[spec.target] if tensor is None else tensor
                    self._tensors[node.name] = (weights.add(spec.target, tensor), tensor)
            elif node.op == "output":
                self._outputs = [_described(each) for each in node.args[0]]
            elif node.op != "call_function":
                raise ModelError(f"the torch program cannot hold {node.op} {node.target}")
            elif str(node.target) not in _NO_EFFECT and not _is_added(node):
                self._nodes.append(_written(node))

    def serialised(self, places: dict[str, Place]) -> tuple[Program, bytes]:
        """What a manifest says of it, and its file's bytes."""
        tensors = {}
        for name, (key, tensor) in self._tensors.items():
            place = places[key]
            dtype = str(tensor.dtype).removeprefix("torch.")
            tensors[name] = [dtype, list(tensor.shape), place.file, place.offset]
        content = {
            "version": VERSION,
            "inputs": self._inputs,
            "outputs": self._outputs,
            "tensors": tensors,
            "nodes": self._nodes,
        }
        files = sorted({places[key].file for key, _ in self._tensors.values()})
        described = Program(FORMAT, (FILE, *files), "float32, fp16 on a GPU", self._methods)
        return described, json.dumps(content, separators=(",", ":")).encode()


def _described(node: Node) -> list[Any]:
    """``[name, dtype, shape]`` of an input or output; null for a size that may vary."""
    value = node.meta["val"]
    shape = [size if isinstance(size, int) else None for size in value.shape]
    return [node.name, str(value.dtype).removeprefix("torch."), shape]


def _written(node: Node) -> list[Any]:
    """``[name, operator, arguments]``, and named arguments where there are some."""
    target, args, kwargs = node.target, list(node.args), dict(node.kwargs)
    if str(target) == "aten.to.device":  # there is one device, the engine's
        target = "aten.to.dtype"
        del args[1]
    if _adds_product(node):
        name = ADD_PRODUCT
        product = args[1]
        assert isinstance(product, Node)
        args = [args[0], *product.args]
    elif target in _SIZES:
        name = f"size.{_SIZES[target]}"
    elif target is operator.getitem:
        name = "getitem"
    elif may_name(str(target)):
        name = str(target)
    else:
        raise ModelError(f"the torch program cannot hold the operator {target}")
    for each in ("layout", "pin_memory"):
        kwargs.pop(each, None)
    written = {key: _argument(value) for key, value in kwargs.items()}
    head = [node.name, name, [_argument(each) for each in args]]
    return [*head, written] if written else head


def _adds_product(node: Node) -> bool:
    """Whether ``node`` adds the sparse term to a dense product that nothing else reads: it can be
    added in place, and no second tensor of that size is needed."""
    add, bmm = torch.ops.aten.add.Tensor, torch.ops.aten.bmm.default
    if node.target is not add or len(node.args) != 2 or node.kwargs:
        return False
    dense, sparse = node.args
    if not isinstance(dense, Node) or not isinstance(sparse, Node) or sparse.target is not bmm:
        return False
    product = dense.args[0] if dense.target is add else dense  # a bias may have been added
    return (
        isinstance(product, Node)
        and product.target is torch.ops.seedtune.int4_linear.default
        and dense.meta["val"].dim() == 3
        and len(dense.users) == len(sparse.users) == 1
    )


def _is_added(node: Node) -> bool:
    """Whether ``node`` is the product that another node adds in place."""
    return any(_adds_product(user) and user.args[1] is node for user in node.users)


def _argument(value: Any) -> Any:
    """An argument: values by name, sizes and numbers as they are, others as ``{kind: ..}``."""
    if isinstance(value, Node):
        return {"value": value.name}
    if isinstance(value, (list, tuple)):
        return [_argument(each) for each in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": None}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ModelError(f"the torch program cannot hold the argument {value!r:.80}")

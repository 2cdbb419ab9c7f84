"""From traced methods to an ExecuTorch file, in time and memory that people have.

Lowered the plain way (``to_edge_transform_and_lower``), SmolLM2 with dynamic rows, length and
probes takes over 15 minutes. What costs, and what is done about it here:

* Every pass re-runs the graph on fake tensors, and symbolic sizes make each operator 5 to 10
  times dearer. Inside a delegate no operator depends on a symbolic size: XNNPACK stores upper
  bounds and reshapes at run time. So a delegate is preprocessed with its sizes set to the bounds.
* The passes before and after would derive the sizes again that the graph already has; they keep
  them (see ``known_sizes``, where torchao's composed operators say what they give, too).
* ``to_edge_transform_and_lower`` decomposes the whole graph three times to ask partitioners what
  to keep; naming ``linear`` in ``preserve_ops`` needs once.
* XNNPACK's partitioner merges candidates pairwise (quadratic); see ``level_partitioner``.
* ``create_submodule_from_nodes`` re-sorts the whole graph for each delegate (quadratic). One sort
  at the end does.
* XNNPACK's preprocessing runs 17 passes on each delegate; those for convolutions, batch norms,
  upsampling and fused attention find nothing in a decoder and are left out.
* ``run_decompositions`` traces the whole graph twice more for a few operators; see ``decompose``.
* Each pass, for each delegate, would write and compile the graph's Python anew, for nobody, and
  copy what each node once came from.
* Weights would be copied for each method, and once more when the file is put together. They are not
  there at all (see ``absent_weights``), and the file is written from theirs; so it is from
  constants (see ``constants_in_place``), of which executorch makes bytes for each method.
* A graph takes 3 MB a matrix, and several stand beside each other: one method is lowered after the
  other, and a delegate copied when its turn comes.

SmolLM2's ``score`` then takes 24 s of one core to trace, 13 s for the edge dialect, 16 s for the
delegates and 4 s for memory planning and writing, beside other jobs.

The patches reach into executorch 1.5 and hold for the duration of ``lower`` only.
"""

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    to_edge,
)
from executorch.exir.backend import backend_api
from executorch.exir.backend.backend_details import BackendDetails
from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite
from executorch.exir.passes import MemoryPlanningPass
from seedtune.runtime.bundle.program import BEHIND, GENERATE
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.traceback import NodeSource

from ..model.mapped_pages import give_back_freed
from ..quiet import quiet
from .absent_weights import absent_weights
from .constants_in_place import constants_in_place
from .decompose import decomposed
from .known_sizes import known_quantisation, known_sizes
from .level_partitioner import LevelPartitioner
from .plan_memory import lowest_place

_EDGE = 0.45
"""Share of a method's time that the edge dialect takes."""
_EDGE_RUNS = 7
"""How often it runs each node of the graph, about."""

_PASSES = {
    "XNNPACKRemoveCloneOpsTransform",
    "DimOrderOpsRevertPass",
    "ConvertToLinearPass",
    "FuseActivationPass",
    "DecomposeConcatenate",
    "RemoveGetItemPass",
    "ChannelsLastTaggedReshapePass",
    "RemoveRedundantCopyPass",
}


def lower(
    program: nn.Module,
    traces: Mapping[str, Callable[[], ExportedProgram]],
    file: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Lower methods to one ExecuTorch program whose matrix products run in XNNPACK.

    Constants of equal bytes are stored once, so methods of one model share its weights.

    Args:
        program: has the int4 linears of all methods.
        traces: methods by name, each traced when its turn comes: graphs are large. The inputs of
            those that take keys and values stay where the caller has them, since these are large;
            those of others are copied into the plan.
        file: to write.
        progress: called with (percent done, 100).

    Raises:
        OSError: ``file`` cannot be written.
    """
    delegated: dict[str, ExportedProgram] = {}
    with quiet(), absent_weights(program):
        for name, trace_it in traces.items():

            def share(done: float, before: int = len(delegated)) -> None:
                progress(int(95 * (before + done) / len(traces)), 100)

            delegated[name] = _delegated(name, trace_it(), share)
            gc.collect()  # a graph's nodes refer to each other
            give_back_freed()
        planning = {
            name: MemoryPlanningPass(
                MemoryPlanningAlgorithmSuite([lowest_place]),
                alloc_graph_input=name not in (GENERATE, BEHIND),
            )
            for name in delegated
        }
        edge = EdgeProgramManager(
            delegated, compile_config=EdgeCompileConfig(_check_ir_validity=False)
        )
        with known_sizes(), _no_code(), constants_in_place():
            config = ExecutorchBackendConfig(memory_planning_pass=planning)
            lowered = edge.to_executorch(config)
        with file.open("wb") as sink:
            lowered.write_to_file(sink)


def _delegated(
    name: str, traced: ExportedProgram, progress: Callable[[float], None]
) -> ExportedProgram:
    """One method in the edge dialect, its products given to XNNPACK."""
    runs = _EDGE_RUNS * len(traced.graph.nodes)
    with known_sizes(), _no_code(), _shared_history():
        with (
            known_quantisation(),
            patch.object(ExportedProgram, "run_decompositions", decomposed),
            _counted(lambda n: progress(_EDGE * min(1.0, n / runs))),
        ):
            edge = to_edge(
                {name: traced},
                compile_config=EdgeCompileConfig(
                    _check_ir_validity=False, preserve_ops=[torch.ops.aten.linear.default]
                ),
            )
        del traced
        gc.collect()
        with _one_sort(), _few_passes(), _static_delegates(progress):
            found: ExportedProgram = edge.to_backend(LevelPartitioner()).exported_program(name)
    _sink_early_work(found.graph_module.graph)
    return found


def _sink_early_work(graph: Graph) -> None:
    """Order the nodes depth first from the output, the longest input chain of each node first.

    Compact weights depend on no activation, so a sort may put all of them at the program's start,
    where the memory plan must keep them alive together. Now each comes right before its user.
    """
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        depth[node] = 1 + max((depth[each] for each in node.all_input_nodes), default=0)
    output = graph.output_node()
    placed = {node for node in graph.nodes if node.op in ("placeholder", "output")}
    stack: list[Node] = [output]
    waiting: set[Node] = set()
    while stack:
        node = stack[-1]
        inputs = [each for each in node.all_input_nodes if each not in placed]
        if inputs and node not in waiting:
            waiting.add(node)
            stack.extend(sorted(inputs, key=depth.__getitem__))  # the deepest is popped first
            continue
        stack.pop()
        if node not in placed:
            placed.add(node)
            output.prepend(node)


@contextlib.contextmanager
def _counted(report: Callable[[int], None]) -> Iterator[None]:
    """Call ``report`` with how many nodes were run so far, every hundredth time."""
    run, count = Interpreter.run_node, 0

    def counted(self: Any, node: Node) -> Any:
        nonlocal count
        count += 1
        if count % 100 == 0:
            report(count)
        return run(self, node)

    with patch.object(Interpreter, "run_node", counted):
        yield


@contextlib.contextmanager
def _no_code() -> Iterator[None]:
    """Write no Python for graphs that nobody runs: passes walk over nodes, and each of them, for
    each of the delegates, would generate and compile the whole graph's code again."""

    def specs_only(self: GraphModule) -> None:
        self._code = ""
        if isinstance(self._graph._codegen, _PyTreeCodeGen):
            self._in_spec = self._graph._codegen.pytree_info.in_spec
            self._out_spec = self._graph._codegen.pytree_info.out_spec

    with patch.object(GraphModule, "recompile", specs_only):
        yield


@contextlib.contextmanager
def _shared_history() -> Iterator[None]:
    """Do not copy what a node came from, all the way back, at each node of each pass."""
    with patch.object(NodeSource, "__deepcopy__", lambda self, memo: self, create=True):
        yield


@contextlib.contextmanager
def _one_sort() -> Iterator[None]:
    """Sort the graph after the last delegate is cut out of it instead of after each."""
    cut, partition = (
        backend_api.create_submodule_from_nodes,
        backend_api._create_partitions_in_graph_module,
    )
    left = 0

    def cut_unsorted(module: Any, nodes: Any, tag: Any) -> Any:
        nonlocal left
        left -= 1
        return cut(module, nodes, tag, skip_legalize_graph=left > 0)

    def counted(module: Any, result: Any, *rest: Any) -> Any:
        nonlocal left
        left = len(result.partition_tags)
        return partition(module, result, *rest)

    with (
        patch.object(backend_api, "create_submodule_from_nodes", cut_unsorted),
        patch.object(backend_api, "_create_partitions_in_graph_module", counted),
    ):
        yield


@contextlib.contextmanager
def _few_passes() -> Iterator[None]:
    plain = XNNPACKPassManager.__init__

    def chosen(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self.passes = [step for step in self.passes if step.__name__ in _PASSES]

    with patch.object(XNNPACKPassManager, "__init__", chosen):
        yield


@contextlib.contextmanager
def _static_delegates(progress: Callable[[float], None]) -> Iterator[None]:
    """Preprocess each delegate at its upper bounds; the surrounding graph stays symbolic.

    Each is copied when its turn comes, and its weights are not: executorch copies all at first.
    """
    preprocess, lower_all = XnnpackBackend.preprocess, backend_api.lower_all_submodules_to_backend
    done, total = 0, 0

    def one(program: ExportedProgram, specs: Any) -> Any:
        nonlocal done
        tensors = (*program.state_dict.values(), *program.constants.values())
        program = copy.deepcopy(program, {id(tensor): tensor for tensor in tensors})
        mode = FakeTensorMode()
        for node in program.graph_module.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = _at_bounds(node.meta["val"], mode)
        result = preprocess(program, specs)
        done += 1
        progress(_EDGE + (1 - _EDGE) * done / total)
        return result

    def counted(backend: str, nodes: dict[str, list[Any]], programs: Any) -> Any:
        nonlocal total
        total = sum(len(each) for each in nodes.values())
        return lower_all(backend, nodes, programs)

    def not_yet(cls: type, program: ExportedProgram, specs: Any) -> ExportedProgram:
        return program

    with (
        patch.object(BackendDetails, "copy_exported_program_for_preprocess", classmethod(not_yet)),
        patch.object(XnnpackBackend, "preprocess", staticmethod(one)),
        patch.object(backend_api, "lower_all_submodules_to_backend", counted),
    ):
        yield


def _at_bounds(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, torch.Tensor):
        with mode:
            return torch.empty([_upper(size) for size in value.shape], dtype=value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value)(_at_bounds(item, mode) for item in value)
    return value


def _upper(size: Any) -> int:
    if isinstance(size, int):
        return size
    return int(size.node.shape_env.bound_sympy(size.node.expr).upper)

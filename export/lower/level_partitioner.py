"""Cuts a decoder's graph into XNNPACK delegates in one walk over it.

executorch's own partitioner merges candidates pairwise and checks each merge for cycles: minutes
for the 3 000 nodes of SmolLM2. A decoder is one long chain, so levels do: a node that XNNPACK runs
has the level of the delegated nodes before it, and one more than the undelegated ones before it.
All delegated nodes of a level form one delegate.

No cycle can arise: a path that leaves a delegate of level L through an undelegated node can only
come back into a level above L.
"""

from typing import Any

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.passes.infra.partitioner import Partition


class LevelPartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK's rules for what can be delegated, with one delegate per level."""

    def generate_partitions(self, ep: ExportedProgram) -> list[Any]:
        units = self.get_matched_nodes_from_configs(ep)
        unit_of = {node: index for index, unit in enumerate(units) for node in unit}
        level: dict[Node, int] = {}
        unit_level = [1] * len(units)
        for node in ep.graph_module.graph.nodes:
            unit = unit_of.get(node)
            inputs = node.all_input_nodes
            if unit is None:
                level[node] = max((level[each] for each in inputs), default=0)
                continue
            level[node] = max((level[each] + (each not in unit_of) for each in inputs), default=0)
            # A quantised product is a unit of several nodes; its weight's branch starts at
            # constants and must not stay behind on a lower level.
            level[node] = max(level[node], unit_level[unit])
            unit_level[unit] = level[node]
        delegates: dict[int, list[Node]] = {}
        for index, unit_nodes in enumerate(units):
            delegates.setdefault(unit_level[index], []).extend(unit_nodes)
        order = {node: place for place, node in enumerate(ep.graph_module.graph.nodes)}
        return [
            Partition(id=number, nodes=dict.fromkeys(sorted(nodes, key=order.__getitem__)))
            for number, (_, nodes) in enumerate(sorted(delegates.items()))
        ]

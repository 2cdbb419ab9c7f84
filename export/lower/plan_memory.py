"""Memory planning: where in the arena each activation lies.

executorch's greedy plan gives every large tensor a region of its own and packs smaller ones beside
it, never at the lowest free place. That costs nothing where a request fills the bounds, but one
below them touches the front of each place, wherever the plan scattered it: SmolLM2, whose
activations need 9 MB at once, touched 58 MB of a 101 MB arena, since two logit buffers for the
most positions (50 MB each) set its size. Here every tensor takes the lowest place that is free
during its life, the largest first (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural
Net Inference", arXiv 2001.03288, section 5.2).
"""

from collections.abc import Iterable
from typing import Any

from seedtune.runtime.errors import ModelError


def lowest_place(
    alignment: int,
    specs: Iterable[Any],
    graph_module: Any,
    graph_signature: Any,
    extra_padding: int = 0,
) -> Any:
    """An algorithm for executorch's ``MemoryPlanningAlgorithmSuite``.

    Args:
        specs: ``TensorSpec`` with ``allocated_memory`` (bytes) and ``lifetime`` (first and last
            instruction, both included).

    Returns:
        ``MemoryAlgoResult``: memory, object and offset of each spec, and the memories' sizes.

    Raises:
        ModelError: a spec is a part of another that does not hold it or that is not planned.
    """
    from executorch.exir.memory_planning import MemoryAlgoResult, SpecAllocResult

    result = MemoryAlgoResult({}, [])
    sizes = list(getattr(graph_module, "input_mem_buffer_sizes", None) or [0, 0])
    first_free = list(sizes)
    placed: dict[int, list[tuple[int, int, int, int]]] = {}  # memory: (offset, end, born, dies)
    parts = []
    specs = list(specs)
    for spec in specs:
        spec.realign(alignment)  # it rounds their sizes up
    # Equal sizes by lifetime: specs may come in another order at each export.
    for spec in sorted(specs, key=lambda spec: (-spec.allocated_memory, *spec.lifetime)):
        if spec.storage_base is not None:
            parts.append(spec)
            continue
        memory = 1 if spec.mem_id is None else spec.mem_id
        born, dies = spec.lifetime
        size = spec.allocated_memory
        others = placed.setdefault(memory, [])
        while memory >= len(sizes):
            sizes.append(0)
            first_free.append(0)
        offset = first_free[memory]
        for start, end, other_born, other_dies in others:  # by offset
            if other_dies < born or dies < other_born:
                continue
            if offset + size <= start:
                break
            offset = max(offset, end)
        others.append((offset, offset + size, born, dies))
        others.sort()
        sizes[memory] = max(sizes[memory], offset + size)
        result.spec_dict[spec] = SpecAllocResult(memory, len(result.spec_dict), offset)
    while parts:  # a part of another tensor lies inside it; the other may be a part itself
        spec = next((each for each in parts if each.storage_base in result.spec_dict), None)
        if spec is None:
            raise ModelError(f"memory plan: {parts[0]} is a part of a tensor that is not planned")
        inside = spec.storage_base_offset
        if inside < 0 or inside + spec.allocated_memory > spec.storage_base.allocated_memory:
            raise ModelError(
                f"memory plan: {spec} at byte {inside} does not lie inside {spec.storage_base}"
            )
        base = result.spec_dict[spec.storage_base]
        offset = base.mem_offset + inside
        if offset % alignment:
            raise ModelError(
                f"memory plan: {spec} at byte {offset} is not aligned to {alignment} bytes"
            )
        result.spec_dict[spec] = SpecAllocResult(base.mem_id, base.mem_obj_id, offset)
        parts.remove(spec)
    result.bufsizes = [size + extra_padding if size else 0 for size in sizes]
    return result

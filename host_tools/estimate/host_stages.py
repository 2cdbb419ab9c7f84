"""Memory and time that profiling and export will take on a workstation, before anything is loaded.

Each estimate is a sum of named components, so that a user sees what to change. The constants were
measured on SmolLM2-135M (Linux, x86-64, torch 2.13, executorch 1.5.1); everything else follows from
shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

from seedtune.export.model.shape import ModelShape
from seedtune.export.quantise import DEFAULT_ROUNDING, GPTQ

from .sizes import (
    GENERIC_TOKENS,
    MB,
    PIECE_HELD,
    TAPPED,
    TEXT_WORK,
    Estimate,
    estimate_bundle,
    sensitive_entries,
    tokenizer_pieces,
)

HOST_PROCESS = 466 * MB
"""Resident size of Python with torch, transformers and the tokenizer loaded, before weights."""
LOGIT_BYTES = 17
"""Per logit while profiling: logits, log-softmax, both gradients, and the allocator's share."""
SEQUENCES = 32
"""That a profile reads, by default."""
CALIBRATION_TOKENS = SEQUENCES * 128
"""That GPTQ passes through the model at once, by default."""
TEXT_WIDTHS = 6
"""Floats that a token of it keeps at once, in widths of the widest matrix."""
ENTRY_BYTES = 48
"""Bytes of a sensitive entry while masks are chosen: value, layer and place, twice."""
ROUNDED_BYTES = 4 + 1 + 4 / 32
"""Bytes of a weight while its matrix is rounded: float32, an integer, its share of a scale."""
ROUNDED_ROWS, PART_BYTES = 4096, 10
"""Rows that are rounded at a time, and bytes of each of their weights besides: what torchao or GPTQ
makes of them on the way (8.7 and 10.0 of a head of 32 000 by 4 096)."""
ENTRY_KEPT = 26
"""Bytes of a sensitive entry from surgery on: in the mask, its index, its place, its value."""
SECOND_MOMENTS = 28
"""Bytes of the second moments, their inverse and its factors, per pair of input columns."""
GRAPH_BYTES = 1_200_000
"""Per matrix, of the traced graph."""
METHODS = 3
"""Large methods of ExecuTorch's program, unless it is exported with ``--context 0``."""
LOWERED_BYTES, LOWERING_BYTES = 470_000, 1_250_000
"""Per matrix, of the graphs of a method that is lowered, and those of one that is being lowered
besides: SmolLM2 with three methods (1.06 GB at its peak)."""
PROFILE_EFFICIENCY = 0.65
"""Speed of a forward and backward pass over that of one large float32 matrix product."""
SMOLLM2_PIECES = 98_052
"""Of the tokenizer that ``HOST_PROCESS`` counts."""
EXPORT_SECONDS_PER_MATRIX = 0.5
"""Of lowering, which is bound by Python per matrix, not by its size."""


def _host(shape: ModelShape) -> dict[str, int]:
    """What a process with torch holds before weights."""
    larger = PIECE_HELD * max(0, tokenizer_pieces(shape) - SMOLLM2_PIECES)
    return {"Python, torch, transformers": HOST_PROCESS, "a larger tokenizer": larger}


def estimate_profile(shape: ModelShape, *, length: int = 128, speed: float) -> Estimate:
    """Peak resident memory and duration of a sensitivity profile on the CPU: of its work on a
    block, or of that on the output head, whichever takes more."""
    tokens = SEQUENCES * length
    block = shape.linear_weights // shape.blocks
    kept = 8 * shape.hidden + 4 * shape.intermediate  # values for the backward pass, a token
    common = {
        **_host(shape),
        "what blocks read of all text": 4 * (shape.blocks + 2) * tokens * shape.hidden,
    }
    on_a_block = {
        **common,
        "float32 weights of a block": 4 * block,
        "their squared gradients": 4 * block,
        "one gradient, and its copy in the weight's order": 8 * shape.largest_linear,
        "activations": 4 * kept * length,
    }
    on_the_head = {
        **common,
        "embedding and head (float32)": 4 * (shape.embedding + shape.head),
        "logits": shape.vocabulary * length * LOGIT_BYTES,
    }
    most = max(on_a_block, on_the_head, key=lambda components: sum(components.values()))
    # Forward twice, gradient of inputs, gradient of weights: two operations each a weight.
    head = shape.head or shape.embedding
    operations = 2 * (4 * shape.linear_weights + 2 * head) * tokens
    return Estimate("profile", most, operations / (speed * PROFILE_EFFICIENCY))


def estimate_gguf(shape: ModelShape) -> Estimate:
    """Peak of dequantising a GGUF file for the first time; later loads come from the cache."""
    largest = max(shape.largest_linear, shape.embedding, shape.head)
    components = {**_host(shape), "a tensor in float32, and on its way there": 8 * largest}
    return Estimate("first GGUF load", components, shape.parameters / 8e6)


def estimate_export(
    shape: ModelShape,
    *,
    to: Sequence[str] = ("executorch",),
    rounding: str = DEFAULT_ROUNDING,
    speed: float,
) -> Estimate:
    """Peak resident memory and duration of an export from a profile: of choosing the sensitive
    weights, quantising, making the frame of a text head, and lowering, whichever takes the most.

    Weights stay in their files until they are used, one matrix at a time.

    Args:
        to: formats of the programs.
        rounding: how weights become int4: ``nearest`` needs no calibration text.
    """
    bundle, entries = estimate_bundle(shape).components, sensitive_entries(shape)
    common = {
        **_host(shape),
        "int8 embedding": bundle["int8 embedding"],
        "sensitive entries": entries * ENTRY_KEPT,
        "float columns": bundle["float columns"],
    }
    choosing = {
        **_host(shape),
        "gradients of a matrix": 2 * 4 * shape.largest_linear,
        "chosen entries": entries * ENTRY_BYTES,
    }
    matrices = [*shape.linears.values(), (shape.vocabulary, shape.hidden)]
    # With GPTQ the wider input takes its second moments with it, the head has more rows.
    most_of_one = max(
        (_rounding(*size, rounding) for size in matrices), key=lambda of: sum(of.values())
    )
    quantising = {**common, **most_of_one}
    if rounding == GPTQ:
        text = CALIBRATION_TOKENS * TEXT_WIDTHS * shape.intermediate * 4
        quantising["calibration text"] = text
    framing = {**common, "frame of a text head, while it is made": _framing(shape)}
    stages = [choosing, quantising, framing]
    if set(to) != {"executorch"}:
        held = {"int4 head": bundle["int4 head"], "graph": len(shape.linears) * GRAPH_BYTES}
        stages.append({**common, **held})
    if "executorch" in to:
        graphs = len(shape.linears) * (METHODS * LOWERED_BYTES + LOWERING_BYTES)
        stages.append({**common, "graphs": graphs})
    most = max(stages, key=lambda components: sum(components.values()))
    operations = 2.0 * shape.linear_weights * GENERIC_TOKENS  # for the frame of a text head
    operations += 2.0 * shape.linear_weights * CALIBRATION_TOKENS
    for out, width in shape.linears.values():  # second moments, their factors, compensation
        operations += width**2 * (2.0 * CALIBRATION_TOKENS + 3.0 * width + 2.0 * out)
    seconds = operations / (speed * PROFILE_EFFICIENCY)
    return Estimate("export", most, seconds + len(shape.linears) * EXPORT_SECONDS_PER_MATRIX)


def _rounding(rows: int, width: int, rounding: str) -> dict[str, int]:
    """Of one matrix."""
    part = PART_BYTES * min(rows, ROUNDED_ROWS) * width
    one = {"a matrix while it is rounded": int(ROUNDED_BYTES * rows * width) + part}
    if rounding == GPTQ:
        one["second moments of its input"] = SECOND_MOMENTS * width**2
    return one


def _framing(shape: ModelShape) -> int:
    """Generic text's states thrice in float32 and once in float64, what the head reads of it, and
    eigenvectors, of so many directions as there are tokens at most."""
    states, read = GENERIC_TOKENS * TAPPED * shape.hidden, GENERIC_TOKENS * shape.hidden
    directions = min(GENERIC_TOKENS, TAPPED * shape.hidden)
    vectors = 2 * TAPPED * shape.hidden * directions if directions == GENERIC_TOKENS else 0
    return 20 * states + 16 * read + 8 * (3 * directions**2 + vectors) + TEXT_WORK

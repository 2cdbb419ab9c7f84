"""Memory and time that profiling, export and tuning will take, before anything is loaded.

Each estimate is a sum of named components, so that a user sees what to change. The constants below
were measured on SmolLM2-135M (Linux, x86-64, torch 2.13, executorch 1.5.1); everything else
follows from shapes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import ModelError

from .model_shape import ModelShape

MB = 10**6

HOST_PROCESS = 466 * MB
"""Resident size of Python with torch, transformers and the tokenizer loaded, before weights."""
TORCH_ENGINE_PROCESS = 366 * MB
"""Resident size of Python with torch and the executorch binding, before any program."""
NATIVE_ENGINE_PROCESS = 140 * MB
"""The same without torch (37 MB), with the runtime's arenas and XNNPACK's workspace: what SmolLM2's
peak of 361, 414 and 466 MB at 16 x 32, 64 and 128 tokens and P = 2 leaves over the other terms."""
LOGIT_BYTES = 22
"""Per logit while profiling: logits, log-softmax, both gradients, and the allocator's share."""
GGUF_PEAK = 2.7
"""Peak of dequantising a GGUF file, in multiples of the float32 weights. Once per file."""
INT4_BYTES = 0.5 + 2 / 32
"""Per int4 weight: half a byte, and a 2-byte scale for each group of 32."""
PROGRAM_OVERHEAD = 40_000
"""Bytes of a lowered program per matrix: graph, kernels' constants, delegate headers."""
PROFILE_EFFICIENCY = 0.65
"""Speed of a forward and backward pass over that of one large float32 matrix product."""
INT4_SPEED = 3.4
"""Speed of the int4 kernels with 8-bit activations over a float32 product on the same cores."""
EXPORT_SECONDS_PER_MATRIX = 0.5
"""Lowering is bound by Python per matrix, not by its size."""


@dataclass(frozen=True)
class Estimate:
    """``components`` in bytes by name; ``seconds`` of the whole stage, or of one step of tuning."""

    stage: str
    components: dict[str, int]
    seconds: float

    @property
    def bytes(self) -> int:
        return sum(self.components.values())


def measure_speed() -> float:
    """Float32 multiply-adds counted as two operations, per second, of torch on this machine."""
    import torch

    size = 1024
    matrix = torch.ones(size, size)
    best = float("inf")
    for _ in range(8):  # the best of several: another process may hold a core for a while
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def estimate_profile(
    shape: ModelShape,
    *,
    sequences: int = 32,
    length: int = 128,
    dtype_bytes: int = 4,
    gradient_checkpointing: bool = False,
    speed: float,
) -> Estimate:
    """Peak resident memory and duration of a sensitivity profile on the CPU."""
    block = 8 * shape.hidden + 4 * shape.intermediate  # values kept for the backward pass, a token
    kept = shape.blocks * shape.hidden + block if gradient_checkpointing else shape.blocks * block
    components = {
        "Python, torch, transformers": HOST_PROCESS,
        "weights": shape.parameters * dtype_bytes,
        "accumulator (float32)": shape.linear_weights * 4,
        "one gradient": shape.largest_linear * dtype_bytes,
        "activations": kept * length * dtype_bytes,
        "logits": shape.vocabulary * length * LOGIT_BYTES,
    }
    # Forward, gradient of inputs, gradient of weights: two operations each for every weight.
    passes = 4 if gradient_checkpointing else 3
    head = shape.head or shape.embedding
    operations = 2 * passes * (shape.linear_weights + head) * sequences * length
    return Estimate("profile", components, operations / (speed * PROFILE_EFFICIENCY))


def estimate_gguf(shape: ModelShape) -> Estimate:
    """Peak of dequantising a GGUF file for the first time; later loads come from the cache."""
    components = {
        "Python, torch, transformers": HOST_PROCESS,
        "dequantised weights and copies": int(shape.parameters * 4 * GGUF_PEAK),
    }
    return Estimate("first GGUF load", components, shape.parameters / 8e6)


def estimate_bundle(
    shape: ModelShape,
    *,
    fraction: float = 0.001,
    column_share: float = 0.006,
    embedding_bits: int = 8,
    tokenizer_bytes: int = 3_500_000,
) -> Estimate:
    """Size of the exported bundle on disk.

    Args:
        fraction: of the weights that are sensitive.
        column_share: dense size of the columns kept out of int4 over that of all weights.
    """
    entries = max(1, round(shape.linear_weights * fraction))
    embedding = shape.embedding + shape.head
    components = {
        "int4 matrices": int(shape.linear_weights * INT4_BYTES),
        "float columns": int(shape.linear_weights * column_share * 4),
        # Gathering rows and multiplying by the head take two layouts, so tied weights are stored
        # twice: as a table and as a packed matrix.
        "embedding and head": int(
            (embedding if shape.head else 2 * embedding) * (embedding_bits / 8 + 2 / 32)
        ),
        "norms and biases": shape.other * 4,
        "sensitive values and positions": entries * (2 + 8),
        "program graph": len(shape.linears) * PROGRAM_OVERHEAD,
        "tokenizer": tokenizer_bytes,
    }
    return Estimate("bundle", components, 0.0)


def estimate_export(shape: ModelShape, **bundle_options: float) -> Estimate:
    """Peak resident memory and duration of quantising and lowering."""
    program = estimate_bundle(shape, **bundle_options).bytes  # type: ignore[arg-type]
    components = {
        "Python, torch, transformers": HOST_PROCESS,
        "weights": shape.parameters * 4,
        "quantised copy (int8 before packing)": shape.linear_weights + shape.embedding,
        "program and its serialised copy": 2 * program,
    }
    return Estimate("export", components, len(shape.linears) * EXPORT_SECONDS_PER_MATRIX)


def estimate_tuning(
    shape: ModelShape,
    bounds: Bounds,
    *,
    engine: Literal["torch", "native"] = "torch",
    rows: int | None = None,
    length: int | None = None,
    fraction: float = 0.001,
    column_share: float = 0.006,
    embedding_bits: int = 8,
    speed: float,
) -> Estimate:
    """Peak resident memory of tuning, and seconds of one step (all probes in one forward pass).

    Args:
        bounds: of the program; its buffers are planned for them, whatever the batches use.
        engine: ``torch`` for the executorch Python binding, which links torch, ``native`` for the
            runtime library alone.
        rows, length: of the batches that are timed; the bounds where not given.
    """
    if engine not in ("torch", "native"):
        raise ModelError(f"engine {engine!r} is not torch or native")
    entries = max(1, round(shape.linear_weights * fraction))
    bundle = estimate_bundle(
        shape, fraction=fraction, column_share=column_share, embedding_bits=embedding_bits
    ).components
    tokens = bounds.probes * bounds.rows * bounds.length
    # Live at once in the widest block: residual, normed input, query, key, value, output in the
    # attention half, or gate, up and their product in the feed-forward half; and the scores.
    widest = max(6 * shape.hidden, 2 * shape.hidden + 3 * shape.intermediate)
    scores = 2 * bounds.probes * bounds.rows * shape.heads * bounds.length**2
    answers = bounds.probes * bounds.positions
    weights = {
        name: bundle[name]
        for name in ("int4 matrices", "float columns", "embedding and head", "program graph")
    }
    components = {
        f"process ({engine} engine)": (
            TORCH_ENGINE_PROCESS if engine == "torch" else NATIVE_ENGINE_PROCESS
        ),
        **weights,
        # XNNPACK repacks its weights into a buffer of its own when the program is opened.
        "packed copy of int4 matrices": weights["int4 matrices"],
        "activations": tokens * widest * 4,
        "attention scores": scores * 4,
        "logits at answers": 2 * answers * shape.vocabulary * 4,
        # Live values, best values and the P rows handed to the program, with their scatter.
        "values": entries * 4 * (2 + 2 * bounds.probes),
        "tokenizer and data": 60 * MB,
    }
    used = bounds.probes * (rows or bounds.rows) * (length or bounds.length)
    head = shape.head or shape.embedding
    operations = 2 * (shape.linear_weights * (1 + column_share) * used + head * answers)
    return Estimate("tuning", components, operations / (speed * INT4_SPEED))

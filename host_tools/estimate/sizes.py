"""What the estimates of all stages share: sizes of a bundle, a tokenizer, a machine's speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from seedtune.export.model.shape import ModelShape
from seedtune.export.profile import DEFAULT_FRACTION
from seedtune.runtime.bundle.terms import SLOTS, MatrixPlace, TermsInfo

MB = 10**6
INT4_BYTES = 0.5 + 2 / 32
"""Per int4 weight: half a byte, and a 2-byte scale for each group of 32."""
PROGRAM_OVERHEAD = 40_000
"""Bytes of a lowered program per matrix: graph, kernels' constants, delegate headers."""
COLUMN_SHARE = 0.004
"""Dense size of the columns kept out of int4 over that of all weights: of the default mask on
SmolLM2."""
TAPPED, TEXT_ENTRIES, GENERIC_TOKENS = 2, 576 * 1152, 4096
"""Of a head for text: states that it reads, most of its weights, tokens of generic text."""
TERMS_RANK = 8
"""``program.low_rank_terms.DEFAULT_RANK``, without importing torch."""
PIECE_KEPT, PIECE_HELD = 135, 350
"""Bytes of a tokenizer for each of its tokens and merges, once what reading it left behind is given
back, as opening a program does, and before that. SmolLM2 (98 052 pieces): 17 and 33 MB, Gemma 3
(777 050): 102 and 304."""
PIECES, PIECE_BYTES = 3, 40
"""Pieces for each token of the model's vocabulary, and bytes of one in ``tokenizer.json``, where
there is no file yet."""
TEXT_WORK = 60 * MB
"""What a head for text takes besides: words in float32, logits and states of some tokens."""


READ_A_FLOP = 0.23
"""Bytes that a machine reads in the time of one float32 operation, where only those are known: as
an AMD EPYC, 20 GB/s and 87 billion on one thread."""


@dataclass(frozen=True)
class Estimate:
    """``components`` in bytes by name; ``seconds`` of the whole stage, or of one step of tuning."""

    stage: str
    components: dict[str, int]
    seconds: float

    @property
    def bytes(self) -> int:
        return sum(self.components.values())


def sensitive_entries(shape: ModelShape) -> int:
    """K, of an export by default."""
    return max(1, round(shape.linear_weights * DEFAULT_FRACTION))


def tokenizer_pieces(shape: ModelShape) -> int:
    """Tokens and merges of its tokenizer."""
    return shape.tokenizer_pieces or PIECES * shape.vocabulary


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


def measure_reading() -> float:
    """Bytes of a float32 matrix per second that torch multiplies with one vector, on this machine:
    a matrix that no cache holds, as a model's are not when it writes token after token."""
    import torch

    matrix, vector = torch.ones(4096, 1 << 13), torch.ones(1 << 13)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        best = min(best, time.perf_counter() - start)
    return 4 * matrix.numel() / best


def estimate_bundle(shape: ModelShape) -> Estimate:
    """Size of the exported bundle on disk."""
    components = {
        "int4 matrices": int(shape.linear_weights * INT4_BYTES),
        "float columns": int(shape.linear_weights * COLUMN_SHARE * 4),
        "int8 embedding": int(shape.embedding * 1.01),
        # Tied weights are there again, in the layout that a product takes.
        "int4 head": int((shape.head or shape.embedding) * INT4_BYTES),
        "norms and biases": shape.other * 4,
        "sensitive values and positions": sensitive_entries(shape) * (2 + 8),
        "program graph": len(shape.linears) * PROGRAM_OVERHEAD,
        "tokenizer": shape.tokenizer_bytes or PIECE_BYTES * tokenizer_pieces(shape),
        "frame of a text head": text_frame_bytes(shape.hidden),
        "directions of terms": _directions_bytes(shape),
    }
    return Estimate("bundle", components, 0.0)


def terms_of(shape: ModelShape) -> TermsInfo | None:
    """Sizes of the terms that programs take by default."""
    blocks = shape.upper_blocks
    if not blocks:
        return None
    columns = round(COLUMN_SHARE * shape.hidden)
    places = (MatrixPlace(0, 0, 0, columns, ""),) * (SLOTS * blocks)
    first = shape.blocks - blocks
    return TermsInfo(first, blocks, TERMS_RANK, shape.intermediate, 1e-5, 1, "silu", "", places)


def _directions_bytes(shape: ModelShape) -> int:
    info = terms_of(shape)
    if info is None:
        return 0
    widths = info.rank * (shape.hidden + info.inner) + shape.hidden
    return 4 * (info.blocks * widths + GENERIC_TOKENS)


def text_shape(hidden: int) -> tuple[int, int]:
    """Of a head for text: directions of what it moves, and of what it reads."""
    states = TAPPED * hidden
    kept = min(1.0, (TEXT_ENTRIES / (states * hidden)) ** 0.5)
    return max(1, int(hidden * kept)), max(1, int(states * kept))


def text_frame_bytes(hidden: int) -> int:
    """Of the part that a head for text is learned in: bases and generic text, in float16."""
    states, (outputs, inputs) = TAPPED * hidden, text_shape(hidden)
    return 2 * (states * inputs + hidden * outputs + GENERIC_TOKENS * (states + outputs))

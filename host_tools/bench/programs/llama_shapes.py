"""Published shapes of larger Llamas, and a mask for random weights of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from seedtune.export.profile.profile_file import Profile

FRACTION, COLUMN_SHARE = 0.001, 0.004  # the latter as estimates take it


@dataclass(frozen=True)
class Shape:
    """Fields of a Llama configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 128_256, True),
    "llama-2-7b": Shape(4096, 11_008, 32, 32, 32, 32_000, False),
}


def few_columns(profile: Profile, fraction: float) -> dict[str, NDArray[np.int64]]:
    """A mask method for random weights, whose own profile would spread over all columns: entries
    in ``COLUMN_SHARE`` of the columns of the value projections and of some feed-forward outputs,
    where the default mask finds most."""
    sizes = {name: layer.fisher.shape for name, layer in profile.layers.items()}
    generator = np.random.default_rng(0)
    chosen = {
        name: size
        for number, (name, size) in enumerate(sizes.items())
        if name.endswith("v_proj") or (name.endswith("down_proj") and number % 4 == 0)
    }
    weights, room = (
        sum(rows * columns for rows, columns in each.values()) for each in (sizes, chosen)
    )
    share = weights / room
    mask = {}
    for name, (rows, columns) in chosen.items():
        kept = generator.choice(columns, max(1, round(columns * COLUMN_SHARE * share)), False)
        flat = (np.arange(rows)[:, None] * columns + np.sort(kept)).reshape(-1)
        count = round(rows * columns * fraction * share)
        mask[name] = np.sort(generator.choice(flat, min(count, len(flat)), False))
    return mask

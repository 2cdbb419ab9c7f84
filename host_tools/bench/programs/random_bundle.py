"""A bundle for torch of random weights, for cards: its model, its batch and its limit of memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bounds, Bundle, open_bundle
from seedtune.runtime.errors import BundleError
from seedtune.runtime.files import default_cache
from seedtune.runtime.tasks import Batch

from ..measuring.results_files import say
from . import llama_shapes
from .llama_shapes import FRACTION, Shape
from .random_llama import write_random_llama

MEMORY_LIMIT = 8 * 10**9
"""Bytes that our process may hold on the card."""
ROWS, LENGTH, PROBES = 16, 128, 2
COLUMNS = 16
"""Of each matrix, that its sensitive share lies in, as the default mask has it."""
SHAPES = {
    "llama-2-7b": llama_shapes.SHAPES["llama-2-7b"],
    "llama-1.1b": Shape(2048, 5632, 22, 32, 32, 32_000, False),
    "tiny": Shape(64, 96, 2, 4, 4, 512, False),
}


def random_bundle(name: str) -> Bundle:
    """A bundle for torch of random weights, with its float model in ``hf`` beside it."""
    from seedtune.export.export import export_model
    from seedtune.export.model.decoder_linears import decoder_linears
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.export.recipe import Recipe
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shape = SHAPES[name]
    folder = default_cache() / "bench" / f"gpu-{name}"
    try:
        return open_bundle(folder / "bundle")
    except BundleError:
        pass
    say(f"making a model of the shape {name}")
    config = {**asdict(shape), "max_position_embeddings": 4096, "pad_token_id": 0}
    words = {f"w{number}": number for number in range(shape.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    write_random_llama(folder / "hf", config)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0")
    tokenizer.save_pretrained(folder / "hf")
    loaded = load_causal_lm(folder / "hf", "stored")
    generator = np.random.default_rng(0)
    mask = {
        layer: np.sort(_entries(generator, module.out_features, module.in_features))
        for layer, module in decoder_linears(loaded.model).items()
    }
    return export_model(
        loaded,
        folder / "bundle",
        calibrate=lambda _: (np.zeros((1, 2), np.int64), ""),
        mask=mask,
        recipe=Recipe(rounding="nearest"),
        bounds=Bounds(probes=PROBES, rows=ROWS, length=LENGTH, positions=LENGTH, candidates=16),
        to=("torch",),
    )


def _entries(generator: np.random.Generator, out: int, width: int) -> Any:
    """Flat places of a matrix's sensitive entries, in a few columns."""
    columns = generator.choice(width, min(COLUMNS, width), replace=False)
    count = max(1, round(out * width * FRACTION))
    chosen = generator.choice(out * len(columns), min(count, out * len(columns)), replace=False)
    return chosen // len(columns) * width + columns[chosen % len(columns)]


def batch_of(vocabulary: int, size: tuple[int, int] | None = None) -> Batch:
    """Random tokens with one answer position and two candidates a row; ``ROWS`` of ``LENGTH``."""
    rows, length = size or (ROWS, LENGTH)
    rng = np.random.default_rng(0)
    return Batch(
        tokens=rng.integers(0, vocabulary, (rows, length)),
        positions=np.arange(rows) * length + length - 1,
        candidates=rng.integers(0, vocabulary, (rows, 2)),
        gold=np.zeros(rows, np.int64),
    )

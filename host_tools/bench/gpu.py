"""``seedtune bench gpu``: a two-point step on a graphics card, beside MeZO and QLoRA.

Weights are random, of a real model's shape, and made here: no registry is asked, and no accuracy
means anything. Each contender is a process of its own (``processes.gpu``), ours under a limit of
8 GB that torch's allocator keeps. Without a card all of it runs on the CPU, which takes a small
shape.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from seedtune.runtime.bundle import Bounds, Bundle, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import BundleError, SeedtuneError
from seedtune.runtime.files import default_cache
from seedtune.runtime.tasks import Batch

from .measuring.results_files import RESULTS, say, write_figures
from .programs.random_llama import write_random_llama

LIMIT = 8 * 10**9
"""Bytes that our process may hold on the card."""
ROWS, LENGTH, PROBES = 16, 128, 2
CONTENDERS = ("ours", "forwards-bf16", "mezo-bf16", "qlora", "qlora-checkpointing")
"""``forwards-bf16``: two plain forwards of the batch, what our step is held against."""
FRACTION, COLUMNS = 0.001, 16
"""Sensitive share of each matrix, and input columns that it lies in, as the default mask has it."""


class Shape(NamedTuple):
    """Of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int


SHAPES = {
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32000),
    "llama-1.1b": Shape(2048, 5632, 22, 32, 32000),
    "tiny": Shape(64, 96, 2, 4, 512),
}


def bench_gpu(
    *, shape: str = "llama-2-7b", methods: Sequence[str] = CONTENDERS, results: Path = RESULTS
) -> dict[str, Any]:
    """Figures, also written to ``gpu.json`` in ``results``.

    Args:
        shape: one of ``SHAPES``.
        methods: some of ``CONTENDERS``.

    Returns:
        ``card``; ``parity`` (largest difference of a log-probability to the CPU, by number format
        of the products); and of each contender ``seconds`` of a step (median) with
        ``peak_bytes``, or ``missing`` with the reason.

    Raises:
        SeedtuneError: an unknown shape or contender, or a process that ends early.
    """
    import torch

    for known, asked in ((SHAPES, [shape]), (CONTENDERS, methods)):
        odd = [name for name in asked if name not in known]
        if odd:
            raise SeedtuneError(f"bench gpu: unknown {odd[0]!r}; known: {', '.join(known)}")
    there = torch.cuda.is_available()
    bundle = random_bundle(shape)
    figures: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if there else None,
        "shape": shape,
        "batch": [ROWS, LENGTH],
        "memory_limit": LIMIT,
        "parity": _parity(bundle, "cuda" if there else "cpu"),
    }
    for name in methods:
        say(f"measuring {name}")
        figures[name] = _process(name, bundle, "cuda" if there else "cpu")
    return write_figures("gpu", figures, results)


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
    config = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
    }
    words = {f"w{number}": number for number in range(shape.vocabulary)}
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


def _parity(bundle: Bundle, device: str) -> dict[str, float]:
    values = np.repeat(bundle.values.astype(np.float32)[None], PROBES, axis=0)
    batch = batch_of(bundle.vocab_size, (2, 16))
    names = {"cuda": ("cuda-float32", "cuda", "cuda-bf16"), "cpu": ("cpu-bf16",)}[device]
    with open_engine(bundle, name="torch-int4:cpu") as engine:
        wanted = engine.score(batch, values).logp
    found = {}
    for name in names:
        with open_engine(bundle, name=f"torch-int4:{name}") as engine:
            found[name] = float(np.abs(engine.score(batch, values).logp - wanted).max())
    return found


def _process(name: str, bundle: Bundle, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "seedtune.host_tools.bench.processes.gpu"]
    done = subprocess.run(
        [*command, name, str(bundle.path), device], capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SeedtuneError(f"bench gpu: {name}: {last} (exit code {done.returncode})")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found

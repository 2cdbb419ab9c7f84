"""The tiny Llama exported to a real bundle, once a session of tests."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bounds, Bundle, open_bundle
from seedtune.runtime.tasks import Batch

BOUNDS = Bounds(probes=2, rows=8, length=32, positions=48, candidates=4, prefix=64)
ORIGIN = f"hf://org/tiny@{'0' * 40}"
"""Where its model is said to be from."""
VOCABULARY = 300
HIDDEN = 32
TERMS = ((64, 8), (64, 8), (HIDDEN, 8))
"""Shapes of the terms beside gate, up and down of its last block, the one that has some."""


@functools.cache
def export_tiny_bundle(folder: Path, to: tuple[str, ...] = ("executorch",)) -> Bundle:
    """Export into ``folder``; the same folder is exported once (it takes 15 s), by whichever
    process comes first.

    Args:
        to: formats of the programs.
    """
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (folder / "bundle").exists():
            return open_bundle(folder / "bundle")
        return _export(folder, to)


def _export(folder: Path, to: tuple[str, ...]) -> Bundle:
    import torch
    from seedtune.export.export import export_model
    from seedtune.export.model.load_model import load_causal_lm
    from tiny_model import write_tiny_llama

    loaded = replace(load_causal_lm(write_tiny_llama(folder / "hf"), "stored"), origin=ORIGIN)
    generator = np.random.default_rng(0)
    mask = {
        name: np.sort(generator.choice(layer.weight.numel(), 12, replace=False))
        for name, layer in loaded.model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }
    tokens = generator.integers(0, VOCABULARY, (16, 32))
    return export_model(
        loaded,
        folder / "bundle",
        mask=mask,
        calibrate=lambda tokenizer: (tokens, "random"),
        bounds=BOUNDS,
        to=to,
    )


def request(
    bundle: Bundle, *, rows: int, length: int, scored: int, choices: int, probes: int
) -> tuple[Batch, NDArray[np.float32]]:
    """Arguments of ``score`` of the given sizes, the same at every call."""
    generator = np.random.default_rng([rows, length, scored, choices, probes])
    values = bundle.values.astype(np.float32)
    noise = generator.standard_normal((probes, bundle.K), np.float32)
    batch = Batch(
        tokens=generator.integers(0, VOCABULARY, (rows, length)),
        positions=generator.integers(0, rows * length, scored),
        candidates=generator.integers(0, VOCABULARY, (scored, choices)),
        gold=np.zeros(rows, np.int64),
    )
    return batch, values + np.float32(0.01) * noise


def arrays(batch: Batch, values: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Inputs of the program, in its order: the adapter and the terms come last."""
    adapter, terms = moved(batch, values)
    return [batch.tokens, batch.positions, batch.candidates, values, adapter, *terms]


def moved(
    batch: Batch, values: NDArray[np.float32]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """An adapter and terms that matter, the same for requests of equal sizes."""
    generator = np.random.default_rng([*batch.tokens.shape, *values.shape])
    shapes = ((HIDDEN, 2 * HIDDEN), *TERMS)
    adapter, *terms = (generator.standard_normal(each, np.float32) / 10 for each in shapes)
    return adapter, terms

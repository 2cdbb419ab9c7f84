"""``seedtune bench gpu``: a two-point step on a graphics card, beside MeZO and QLoRA.

Weights are random, of a real model's shape, and made here: no registry is asked, and no accuracy
means anything. Each contender is a process of its own (``processes.gpu``), ours under a limit of
8 GB that torch's allocator keeps. Without a card all of it runs on the CPU, which takes a small
shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import SeedtuneError

from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .processes import gpu as process
from .programs.random_bundle import (
    LENGTH,
    MEMORY_LIMIT,
    PROBES,
    ROWS,
    SHAPES,
    batch_of,
    random_bundle,
)

CONTENDERS = ("ours", "forwards-bf16", "mezo-bf16", "qlora", "qlora-checkpointing")
"""``forwards-bf16``: two plain forwards of the batch, what our step is held against."""


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
        "memory_limit": MEMORY_LIMIT,
        "parity": _parity(bundle, "cuda" if there else "cpu"),
    }
    for name in methods:
        say(f"measuring {name}")
        figures[name] = run_module(process.__name__, name, bundle.path, "cuda" if there else "cpu")
    return write_figures("gpu", figures, results)


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

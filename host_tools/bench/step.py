"""``seedtune bench step``: what one step costs against forwards of the plain int4 program.

One run, in turns: the int4 program without the sparse term, the program with it, one SPSA step
through the engine, and one MeZO step in plain PyTorch float32 on the same model, batch and CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.native import NativeEngine
from seedtune.runtime.estimators import make_estimator
from seedtune.runtime.settings import Settings

from ..fetch import fetch
from ..prepare import Prepared, example_batch, prepare
from .timing import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, LENGTH = 16, 32
"""Batch of the quickstart; 32 tokens hold most SST-2 sentences."""


def bench_step(*, turns: int = 7) -> dict[str, Any]:
    """Seconds and ratios, medians over ``turns``.

    Returns:
        ``dense_forward_seconds``, ``sparse_forward_seconds``, ``step_seconds``,
        ``mezo_fp32_step_seconds``, and ``sparse_overhead`` (sparse over dense forward),
        ``step_over_two_forwards`` (step over two dense forwards), ``mezo_fp32_over_step``.
    """
    model = str(fetch("smollm2-135m"))
    prepared = prepare(model, dense=True)
    runs: dict[str, Callable[[], object]] = {
        **_forwards(prepared, None),
        "step": _step(prepared),
        "mezo fp32 step": _mezo_step(model),
    }
    seconds, over_dense = in_turns(runs, turns)
    return {
        "batch": [ROWS, LENGTH],
        "dense_forward_seconds": seconds["dense"],
        "sparse_forward_seconds": seconds["sparse"],
        "step_seconds": seconds["step"],
        "mezo_fp32_step_seconds": seconds["mezo fp32 step"],
        "sparse_overhead": over_dense["sparse"],
        "step_over_two_forwards": over_dense["step"] / 2,
        "mezo_fp32_over_step": over_dense["mezo fp32 step"] / over_dense["step"],
    }


def sparse_overhead(prepared: Prepared, threads: int | None, turns: int = 9) -> float:
    """A forward with the sparse term over the same without it, median of ratios within a turn."""
    return in_turns(_forwards(prepared, threads), turns)[1]["sparse"]


def _forwards(prepared: Prepared, threads: int | None) -> dict[str, Callable[[], object]]:
    bundle = prepared.bundle
    batch = example_batch(ROWS, LENGTH, bundle.vocab_size)
    dense = NativeEngine(prepared.dense_program, bundle.bounds, threads=threads)
    sparse = open_engine(bundle, threads)
    values = bundle.values.astype(np.float32)[None]
    none = np.zeros((1, 1), np.float32)
    return {
        "dense": lambda: dense.score(*batch, none),
        "sparse": lambda: sparse.score(*batch, values),
    }


def _step(prepared: Prepared) -> Callable[[], object]:
    """One two-point step as the loop does it: perturb, one call for both losses, update."""
    bundle = prepared.bundle
    batch = example_batch(ROWS, LENGTH, bundle.vocab_size)
    engine = open_engine(bundle)
    estimator = make_estimator(Settings())
    values = bundle.values.astype(np.float32)
    rows = np.empty((estimator.probes, bundle.K), np.float32)

    def step() -> None:
        estimator.perturb(values, rows, seed=0, step=0, eps=1e-2)
        losses = -engine.score(*batch, rows)[:, :, 0].mean(axis=1).astype(np.float64)
        scalars = estimator.scalars(losses, eps=1e-2)
        estimator.apply(values, scalars, seed=0, step=0, lr=1e-9)

    return step


def _mezo_step(model: str) -> Callable[[], object]:
    """MeZO (arXiv 2305.17333, algorithm 1): perturb all weights in place from a seed, thrice."""
    import torch
    from seedtune.export.load_model import load_causal_lm

    loaded = load_causal_lm(model).model
    tokens = torch.from_numpy(example_batch(ROWS, LENGTH, loaded.config.vocab_size)[0])
    parameters = list(loaded.parameters())

    def perturb(scale: float) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)

    def loss() -> float:
        # The head at the answer position alone, as MeZO's own code has it for classification.
        hidden = loaded.model(tokens, use_cache=False).last_hidden_state[:, -1]
        return float(-torch.log_softmax(loaded.lm_head(hidden), dim=-1)[:, 1].mean())

    @torch.no_grad()
    def step() -> None:
        perturb(1e-3)
        above = loss()
        perturb(-2e-3)
        below = loss()
        perturb(1e-3)
        perturb(-1e-12 * (above - below))

    return step

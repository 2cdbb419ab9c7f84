"""``seedtune bench step``: what one step costs against forwards of the plain int4 program.

One run, in turns: the int4 program without the sparse term, the program with it, one SPSA step
through the engine, one MeZO step in plain PyTorch float32 and one first-order LoRA step, on the
same model, batch and CPU.
"""

from __future__ import annotations

from typing import Any

from seedtune.runtime.bundle import Bundle

from ..data.fetch import fetch
from ..prepare.prepare import Prepared, prepare
from .contenders.steps import Step, dense_forward, lora_step, mezo_step, sparse_forward, spsa_step
from .measuring.timing import in_turns
from .programs.dense_program import dense_program

ROWS, LENGTH = 16, 32
"""Batch of the quickstart; 32 tokens hold most SST-2 sentences."""


def bench_step(*, turns: int = 7) -> dict[str, Any]:
    """Seconds and ratios, medians over ``turns``: see ``step_figures``."""
    model = str(fetch("smollm2-135m"))
    return step_figures(model, prepare(model), turns, ROWS, LENGTH)


def step_figures(
    model: str, prepared: Prepared, turns: int, rows: int, length: int
) -> dict[str, Any]:
    """Seconds and ratios, medians over ``turns``.

    Returns:
        ``dense_forward_seconds``, ``sparse_forward_seconds``, ``step_seconds``,
        ``mezo_fp32_step_seconds``, ``lora_fp32_step_seconds``, and ``sparse_overhead`` (sparse
        over dense forward), ``step_over_two_forwards`` (of the dense program),
        ``mezo_fp32_over_step``, ``lora_over_step``.
    """
    bundle: Bundle = prepared.bundle
    size = (rows, length)
    runs: dict[str, Step] = {
        "dense": dense_forward(bundle, dense_program(prepared), *size),
        "sparse": sparse_forward(bundle, *size),
        "step": spsa_step(bundle, *size),
        "mezo": mezo_step(model, *size),
        "lora": lora_step(model, *size),
    }
    seconds, over_dense = in_turns(runs, turns)
    return {
        "batch": list(size),
        "dense_forward_seconds": seconds["dense"],
        "sparse_forward_seconds": seconds["sparse"],
        "step_seconds": seconds["step"],
        "mezo_fp32_step_seconds": seconds["mezo"],
        "lora_fp32_step_seconds": seconds["lora"],
        "sparse_overhead": over_dense["sparse"],
        "step_over_two_forwards": over_dense["step"] / 2,
        "mezo_fp32_over_step": over_dense["mezo"] / over_dense["step"],
        "lora_over_step": over_dense["lora"] / over_dense["step"],
    }

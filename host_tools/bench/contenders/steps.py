"""One step of each way to tune SmolLM2, on one batch: what ``step`` and ``device`` compare.

Every contender is a function without arguments. The batch is of random tokens, all rows equally
long, one answer position and two candidates a row, as a classification task has it; no contender
skips the output head's other positions less than another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import Engine, open_engine
from seedtune.runtime.engines.executorch_native import NativeEngine
from seedtune.runtime.estimators import make_estimator, settings_of
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.tasks import Encoded, Task, task_for

Step = Callable[[], object]
_CORES = len(os.sched_getaffinity(0))
"""Threads of all, as torch takes them."""

_SPEC = {
    "kind": "classification",
    "template": "{text}\n",
    "label_field": "label",
    "verbalisers": {"0": "no", "1": "yes"},
}


def example_batch(rows: int, length: int, vocabulary: int) -> tuple[Any, Any, Any]:
    """Random tokens ``[rows, length]``, last positions and two candidates each, for timing."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, (rows, length))
    positions = np.arange(rows) * length + length - 1
    return tokens, positions, np.tile(np.array([[1, 2]]), (rows, 1))


def dense_forward(bundle: Bundle, program: Path, rows: int, length: int) -> Step:
    """A forward of the int4 program without the sparse term."""
    engine = NativeEngine(program, bundle.bounds, threads=_CORES)
    return _forward(bundle, engine, np.zeros(1), rows, length)


def sparse_forward(bundle: Bundle, rows: int, length: int) -> Step:
    """A forward of the bundle's program."""
    return _forward(bundle, open_engine(bundle, _CORES), bundle.values, rows, length)


def spsa_step(bundle: Bundle, rows: int, length: int) -> Step:
    """A two-point step as the loop does it: perturb, both losses, update."""
    look = _look(bundle, open_engine(bundle, _CORES), rows, length)
    estimator = make_estimator(settings_of({"estimator": "two-point"}))
    values = bundle.values.astype(np.float32)

    def step() -> None:
        _, scalars = estimator.measure(look, values, seed=0, step=0, eps=1e-2)
        estimator.apply(values, scalars, seed=0, step=0, lr=1e-9)

    return step


def mezo_step(model: str, rows: int, length: int) -> Step:
    """MeZO (arXiv 2305.17333, algorithm 1) in float32: all weights in place from a seed, thrice."""
    import torch
    from seedtune.export.model.load_model import load_causal_lm

    loaded = load_causal_lm(model).model
    tokens = torch.from_numpy(example_batch(rows, length, loaded.config.vocab_size)[0])
    parameters = list(loaded.parameters())

    def perturb(scale: float) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)

    @torch.no_grad()
    def step() -> None:
        perturb(1e-3)
        above = float(_torch_loss(loaded, tokens))
        perturb(-2e-3)
        below = float(_torch_loss(loaded, tokens))
        perturb(1e-3)
        perturb(-1e-12 * (above - below))

    return step


def lora_step(model: str, rows: int, length: int) -> Step:
    """A first-order step of LoRA (``peft``, rank 8, all linear layers) with AdamW in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from seedtune.export.model.load_model import load_causal_lm

    loaded = load_causal_lm(model).model
    tokens = torch.from_numpy(example_batch(rows, length, loaded.config.vocab_size)[0])
    tuned = get_peft_model(loaded, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1e-9)
    base = tuned.get_base_model()

    def step() -> None:
        loss = _torch_loss(base, tokens)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def _torch_loss(model: Any, tokens: Any) -> Any:
    import torch

    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, -1]
    return -torch.log_softmax(model.lm_head(hidden), dim=-1)[:, 1].mean()


def _forward(bundle: Bundle, engine: Engine, values: Any, rows: int, length: int) -> Step:
    look = _look(bundle, engine, rows, length)
    row = values.astype(np.float32)[None]
    return lambda: look.losses(row)


def _look(bundle: Bundle, engine: Engine, rows: int, length: int) -> Look:
    return Look(engine, _task(bundle), bundle.bounds, _examples(bundle, rows, length))


def _task(bundle: Bundle) -> Task:
    return task_for(bundle, _SPEC)


def _examples(bundle: Bundle, rows: int, length: int) -> Sequence[Encoded]:
    tokens, _, candidates = example_batch(rows, length, bundle.vocab_size)
    last = np.array([[0, length - 1]])
    return [
        Encoded(tokens[row : row + 1], last, candidates[row : row + 1], gold=0)
        for row in range(rows)
    ]

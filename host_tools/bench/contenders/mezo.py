"""MeZO on all weights in float32: algorithm 1 of Malladi et al. (arXiv 2305.17333) in PyTorch.

Two differences of its runs, neither to its disadvantage. z is +-1 instead of Gaussian: with 10^8
entries the two have the same length and all but the same distribution along any gradient, and +-1
is drawn four times as fast. And putting the weights back and moving them are one pass over the
weights. Embedding and head are tuned too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from seedtune.export.model.load_model import load_causal_lm
from seedtune.runtime.estimators.noise import add_noise
from seedtune.runtime.scoring.batch_loss import Look

from ..measuring.results_files import say
from .float_task import FloatEngine, FloatTask, last_token_loss, point, random_tokens


def all_weights(model: Any) -> NDArray[np.float32]:
    """Lay all weights of ``model`` out in one float32 array ``[n]`` that they go on living in."""
    parameters = list(model.parameters())
    flat = np.concatenate([parameter.detach().numpy().reshape(-1) for parameter in parameters])
    first = 0
    for parameter in parameters:
        part = flat[first : first + parameter.numel()]
        parameter.data = torch.from_numpy(part).view(parameter.shape)
        first += parameter.numel()
    return flat


def move(weights: NDArray[np.float32], scalar: float, settings: dict[str, Any], step: int) -> None:
    """From ``w - eps z`` to ``w - lr scalar z``, in place."""
    scale = settings["eps"] - settings["lr"] * scalar
    add_noise(weights, scale, seed=settings["seed"], step=step)


def run_on_task(cell: FloatTask, settings: dict[str, Any]) -> dict[str, Any]:
    """Run ``settings["forwards"]`` forwards at a constant learning rate.

    Returns:
        ``curve`` (see ``runs.tune``) and ``step_seconds`` (median).
    """
    engine = FloatEngine(cell.model)
    weights = all_weights(cell.model)
    rows = np.zeros((1, 0), np.float32)
    seed, eps = settings["seed"], settings["eps"]
    steps, every = settings["forwards"] // 2, settings["eval_every"] // 2
    curve: list[dict[str, Any]] = []
    seconds: list[float] = []

    def evaluate(step: int) -> None:
        curve.append(point(2 * step, cell.evaluate(engine)))
        say(f"{curve[-1]}")

    for step in range(steps):
        if step % every == 0:
            evaluate(step)
        began = time.monotonic()
        batch = cell.batch(seed, step, settings["batch_size"])
        look = Look(engine, cell.task, cell.bounds, batch)
        add_noise(weights, eps, seed=seed, step=step)
        above = float(look.mean_losses(rows)[0])
        add_noise(weights, -2 * eps, seed=seed, step=step)
        below = float(look.mean_losses(rows)[0])
        move(weights, (above - below) / (2 * eps), settings, step)
        seconds.append(time.monotonic() - began)
    evaluate(steps)
    return {"curve": curve, "step_seconds": statistics.median(seconds)}


def timed_step(model: str, rows: int, length: int) -> Callable[[], object]:
    """A step on random tokens, with Gaussian noise drawn by PyTorch, thrice."""
    loaded = load_causal_lm(model).model
    tokens = random_tokens(rows, length, loaded.config.vocab_size)
    parameters = list(loaded.parameters())

    def perturb(scale: float) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)

    @torch.no_grad()
    def step() -> None:
        perturb(1e-3)
        above = float(last_token_loss(loaded, tokens))
        perturb(-2e-3)
        below = float(last_token_loss(loaded, tokens))
        perturb(1e-3)
        perturb(-1e-12 * (above - below))

    return step

"""The ceiling: first-order tuning of a low-rank adapter in float32, as most people would do it.

LoRA (Hu et al., arXiv 2106.09685) on all linear layers through ``peft``, AdamW, linear decay.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from seedtune.runtime.tasks import Batch, Task
from seedtune.runtime.tasks.classification import Classification
from seedtune.runtime.tasks.multiple_choice import MultipleChoice
from torch.nn.functional import cross_entropy

from .float_task import FloatTask, point
from .learning import Progress
from .torch_engine import TorchEngine

FORWARDS_A_STEP = 3
"""A backward pass costs about two forwards."""


def run(
    cell: FloatTask, settings: dict[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Tune for ``settings["steps"]`` steps. An interrupted run starts again: it takes minutes.

    Returns:
        ``curve`` (as of ``learning.learn``, with ``seconds`` of the steps so far) and
        ``step_seconds`` (median).
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings["seed"])
    adapter = LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear"
    )
    tuned = get_peft_model(cell.model, adapter)
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings["lr"])
    steps = settings["steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    engine = TorchEngine(tuned.get_base_model())
    curve: list[dict[str, Any]] = []
    seconds: list[float] = []

    def evaluate() -> None:
        tuned.eval()
        found = point(FORWARDS_A_STEP * len(seconds), cell.evaluate(engine))
        curve.append({**found, "seconds": sum(seconds)})
        progress(f"{folder.name} {curve[-1]}")
        tuned.train()

    for step in range(steps):
        if step % settings["eval_every"] == 0:
            evaluate()
        began = time.monotonic()
        batch = cell.task.collate(cell.batch(settings["seed"], step, settings["batch_size"]))
        arguments = (batch.tokens, batch.positions, batch.candidates)
        logp = engine.log_probabilities(*map(torch.from_numpy, arguments))
        loss = batch_loss(cell.task, logp, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        seconds.append(time.monotonic() - began)
    evaluate()
    return {"curve": curve, "step_seconds": statistics.median(seconds)}


def batch_loss(task: Task, logp: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean over the examples of what ``task.losses`` computes, to be differentiated.

    Args:
        logp: ``[N, C]``.
    """
    gold = torch.from_numpy(batch.gold)
    if isinstance(task, Classification):
        return cross_entropy(logp, gold)
    rows = torch.from_numpy(batch.row_of)
    sums = torch.zeros(len(batch.tokens)).index_add(0, rows, logp[:, 0])
    means = sums / torch.bincount(rows, minlength=len(sums))
    if isinstance(task, MultipleChoice):
        return cross_entropy(means.view(batch.examples, -1), gold)
    return -means.mean()

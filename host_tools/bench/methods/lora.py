"""The ceiling: first-order tuning of a low-rank adapter in float32, as most people would do it.

LoRA (Hu et al., arXiv 2106.09685) on all linear layers through ``peft``, AdamW, linear decay.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ..measuring.tuning_run import Progress
from .float_task import FloatTask, point
from .task_loss import task_losses
from .torch_engine import TorchEngine

FORWARDS_A_STEP = 3
"""A backward pass costs about two forwards."""


class Adapter:
    """An adapter on a cell's model and its optimiser.

    Args:
        settings: of the cell: ``rank``, ``alpha``, ``lr``, ``steps``, ``batch_size``, ``seed``.
    """

    def __init__(self, cell: FloatTask, settings: dict[str, Any]) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(settings["seed"])
        adapter = LoraConfig(
            r=settings["rank"], lora_alpha=settings["alpha"], target_modules="all-linear"
        )
        self.model = get_peft_model(cell.model, adapter)
        self.engine = TorchEngine(self.model.get_base_model())
        self._cell, self._settings = cell, settings
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._optimiser = torch.optim.AdamW(weights, lr=settings["lr"])
        steps = settings["steps"]
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser, lambda step: 1 - step / steps
        )

    def step(self, number: int) -> None:
        """Step ``number`` (from 0), on the batch that the tuner would draw."""
        settings, task = self._settings, self._cell.task
        batch = task.collate(self._cell.batch(settings["seed"], number, settings["batch_size"]))
        arguments = (batch.tokens, batch.positions, batch.candidates)
        logp = self.engine.log_probabilities(*map(torch.from_numpy, arguments))
        self._optimiser.zero_grad()
        task_losses(task, logp, batch).mean().backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._schedule.step()


def run(
    cell: FloatTask, settings: dict[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Tune for ``settings["steps"]`` steps, evaluate before those of ``eval_at`` and at the end.

    An interrupted run starts again: it takes minutes.

    Returns:
        ``curve`` (as of ``tuning_run.learn``) and ``step_seconds`` (median).
    """
    adapter = Adapter(cell, settings)
    curve: list[dict[str, Any]] = []
    seconds: list[float] = []

    def evaluate() -> None:
        adapter.model.eval()
        found = point(FORWARDS_A_STEP * len(seconds), cell.evaluate(adapter.engine))
        curve.append(found)
        progress(f"{folder.name} {curve[-1]}")
        adapter.model.train()

    for step in range(settings["steps"]):
        if step in settings["eval_at"]:
            evaluate()
        began = time.monotonic()
        adapter.step(step)
        seconds.append(time.monotonic() - began)
    evaluate()
    return {"curve": curve, "step_seconds": statistics.median(seconds)}

"""LoRA: first-order tuning of a low-rank adapter, as most people would do it.

Hu et al., arXiv 2106.09685, on all linear layers through ``peft``, AdamW, linear decay.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from seedtune.export.model.load_model import load_causal_lm
from seedtune.runtime.engines.memory import peak_resident_bytes
from seedtune.runtime.tasks import Encoded, encode_rows

from ...data.named_tasks import TaskData
from ..measuring.results_files import say
from ..measuring.runs import Stopwatch, message_batches
from .float_task import FloatEngine, FloatTask, last_token_loss, point, random_tokens, task_losses
from .people import SPEC, Person, batch_size

FORWARDS_A_STEP = 3
"""A backward pass costs about two forwards."""


class Adapter:
    """An adapter on a cell's model and its optimiser.

    Args:
        settings: of the cell: ``rank``, ``alpha``, ``lr``, ``steps``, ``batch_size``, ``seed``.
    """

    def __init__(self, cell: FloatTask, settings: dict[str, Any]) -> None:
        torch.manual_seed(settings["seed"])
        self.model, self._optimiser = _adapted(
            cell.model, settings["rank"], settings["alpha"], settings["lr"]
        )
        self.engine = FloatEngine(self.model.get_base_model())
        self._cell, self._settings = cell, settings
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
        task_losses(task, logp, batch).mean().backward()
        self._optimiser.step()
        self._schedule.step()


def _adapted(model: Any, rank: int, alpha: int, lr: float) -> tuple[Any, torch.optim.Optimizer]:
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    tuned = get_peft_model(model, adapter)
    return tuned, torch.optim.AdamW(_trained(tuned), lr=lr)


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def run_on_task(cell: FloatTask, settings: dict[str, Any]) -> dict[str, Any]:
    """Tune for ``settings["steps"]`` steps, evaluate before those of ``eval_at`` and at the end.

    Returns:
        ``curve`` (as of ``runs.tune``) and ``step_seconds`` (median).
    """
    adapter = Adapter(cell, settings)
    curve: list[dict[str, Any]] = []
    seconds: list[float] = []

    def evaluate() -> None:
        adapter.model.eval()
        found = point(FORWARDS_A_STEP * len(seconds), cell.evaluate(adapter.engine))
        curve.append(found)
        say(f"{found}")
        adapter.model.train()

    for step in range(settings["steps"]):
        if step in settings["eval_at"]:
            evaluate()
        began = time.monotonic()
        adapter.step(step)
        seconds.append(time.monotonic() - began)
    evaluate()
    return {"curve": curve, "step_seconds": statistics.median(seconds)}


def run_on_person(person: Person, settings: dict[str, Any]) -> dict[str, Any]:
    """Tune for some epochs; held-out messages choose the epoch that ships, or the start.

    Returns:
        ``test`` and ``other`` as of ``int4.run_on_person``; ``epochs`` says what shipped. Peak
        memory is that of learning: what loading took is forgotten.
    """
    batch = batch_size(settings["messages"])
    own = {**settings, "batch_size": batch, "test_rows": None}
    cell = FloatTask.of(
        settings["source"], TaskData("senders", person.train, person.test, SPEC), own
    )
    if settings["messages"] == 0:
        return _judged(cell)
    epoch = math.ceil(len(cell.train) / batch)
    adapter = Adapter(cell, {**own, "steps": epoch * settings["epochs"]})
    weights = _trained(adapter.model)
    held_out = encode_rows(cell.task, person.held_out)
    _forget_peak()
    watch = Stopwatch()
    best, shipped, kept = math.inf, 0, [weight.detach().clone() for weight in weights]
    for done in range(settings["epochs"] + 1):
        if done:
            adapter.model.train()
            for step in range((done - 1) * epoch, done * epoch):
                adapter.step(step)
        adapter.model.eval()
        loss = math.log(_perplexity(cell, held_out))
        say(f"epoch {done}: {loss:.4f} on held-out messages")
        if loss < best:
            best, shipped, kept = loss, done, [weight.detach().clone() for weight in weights]
    spent = {**watch.read(), "peak_rss_bytes": peak_resident_bytes()}
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return {**_judged(cell), **spent, "epochs": shipped}


def _forget_peak() -> None:
    """Let the peak (``peak_resident_bytes``) begin anew, at what is held now. Linux: see
    ``clear_refs`` in proc(5)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _judged(cell: FloatTask) -> dict[str, Any]:
    test = cell.perplexity(message_batches(cell.task, cell.test, cell.bounds))
    return {"test": {"perplexity": test}, "other": {"perplexity": cell.generic_perplexity()}}


def _perplexity(cell: FloatTask, examples: list[Encoded]) -> float:
    return cell.perplexity(message_batches(cell.task, examples, cell.bounds))


def timed_step(model: str, rows: int, length: int) -> Callable[[], object]:
    """A step of rank 8 on random tokens."""
    loaded = load_causal_lm(model).model
    tokens = random_tokens(rows, length, loaded.config.vocab_size)
    tuned, optimiser = _adapted(loaded, 8, 16, 1e-9)
    base = tuned.get_base_model()

    def step() -> None:
        loss = last_token_loss(base, tokens)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step

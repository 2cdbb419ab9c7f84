"""``seedtune bench guessing``: how well the numbers of a shared journal pick a training text out of
1 000 candidates, by batch size and by how often the text was seen.

A step of ``two-point`` stores one number: the slope of the batch's mean loss along noise whose seed
the journal holds. Whoever has the bundle can compute the slope of any guessed text along the same
noise. Here a guesser who knows in which steps a text was (the seed gives the order) ranks the
candidates by the likelihood of those steps' numbers, the rest of each batch being texts of the same
kind. Its slopes are exact: gradients of the float32 model at the starting values. So the figures
are those of a strong guesser, but one that knows none of the batch's other texts: who knows all of
them finds the missing one whatever the size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.estimators.noise import add_noise
from seedtune.runtime.tasks import Encoded

from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..quickstart import MODEL
from .contenders.float_task import FloatEngine, FloatTask, Places, task_losses
from .contenders.sparse_fp32 import places_of
from .measuring.default_bundle import default_bundle
from .measuring.results_files import RESULTS, say, write_figures

TASK = "sst2"
CANDIDATES, TRAINING = 1000, 64
BATCHES, SEEN = (1, 4, 16, 64), (1, 4, 16)
_DRAWN = 3 * CANDIDATES
_NOISE_AT_ONCE = 64


def bench_guessing(
    *, bundle: Path | None = None, threads: int | None = None, results: Path = RESULTS
) -> dict[str, Any]:
    """Rank 64 training texts, which are among the candidates.

    Args:
        bundle: of the model, for its mask; by default the quickstart's.

    Returns:
        ``by_batch``: for each batch size and number of times that each text was seen, the
        ``median`` rank (1 is best, about 500 is chance) and the shares ranked ``first`` and among
        the first ``ten``.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    data = load_task(TASK)
    data = replace(data, train=data.train[:_DRAWN], test=data.test[:1])
    settings = {"batch_size": 1, "length": 128, "test_rows": 1}
    cell = FloatTask.of(str(fetch(MODEL)), data, settings)
    places = places_of("sensitive", cell, open_bundle(bundle or default_bundle(MODEL)), {})
    texts = {example.tokens.tobytes(): example for example in cell.train}
    gradients = example_gradients(cell, places, list(texts.values())[:CANDIDATES])
    slopes = slopes_along_noise(gradients, TRAINING * max(SEEN))
    by_batch = {
        str(batch): {str(seen): _summary(ranks(slopes, TRAINING, batch, seen)) for seen in SEEN}
        for batch in BATCHES
    }
    figures = {"model": MODEL, "task": TASK, "candidates": CANDIDATES, "training": TRAINING}
    return write_figures("guessing", {**figures, "by_batch": by_batch}, results)


def show_guessing(figures: dict[str, Any]) -> str:
    """One line a batch size."""
    lines = [f"median rank among {figures['candidates']}, by times that a text was seen"]
    for batch, found in figures["by_batch"].items():
        each = "  ".join(f"{seen} times: {its['median']:g}" for seen, its in found.items())
        lines.append(f"batch {batch:>2}  {each}")
    return "\n".join(lines)


def example_gradients(
    cell: FloatTask, places: Places, examples: list[Encoded]
) -> NDArray[np.float32]:
    """The gradient of each example's loss by the values at ``places``, float32 ``[n, K]``."""
    import torch

    engine = FloatEngine(cell.model)
    cell.model.requires_grad_(False)
    weights = [cell.model.get_submodule(name).weight.requires_grad_(True) for name in places]
    flats = [torch.from_numpy(flat) for flat in places.values()]
    found = np.empty((len(examples), sum(map(len, flats))), np.float32)
    for number, example in enumerate(examples):
        batch = cell.task.collate([example])
        logp = engine.log_probabilities(
            *map(torch.from_numpy, (batch.tokens, batch.positions, batch.candidates))
        )
        loss = task_losses(cell.task, logp, batch).sum()
        slopes = torch.autograd.grad(loss, weights)
        parts = [slope.flatten()[flat] for slope, flat in zip(slopes, flats, strict=True)]
        found[number] = torch.cat(parts).numpy()
        if number % 100 == 99:
            say(f"gradients of {number + 1} of {len(examples)} texts")
    return found


def slopes_along_noise(gradients: NDArray[np.float32], steps: int) -> NDArray[np.float64]:
    """The slope of each example's loss along each step's noise, float64 ``[n, steps]``."""
    count, entries = gradients.shape
    found = np.empty((count, steps))
    for first in range(0, steps, _NOISE_AT_ONCE):
        last = min(first + _NOISE_AT_ONCE, steps)
        noise = np.zeros((last - first, entries), np.float32)
        for row, step in zip(noise, range(first, last), strict=True):
            add_noise(row, 1.0, seed=0, step=step)
        found[:, first:last] = gradients @ noise.T
    return found


def ranks(
    slopes: NDArray[np.float64], training: int, batch: int, seen: int, seed: int = 0
) -> NDArray[np.int64]:
    """Rank of each training text among all, int64 ``[training]``, 1 for the likeliest.

    Args:
        slopes: float64 ``[candidates, at least training * seen / batch]``; the first ``training``
            of the candidates are the training texts.
        seen: passes over the training texts.
    """
    order = np.random.default_rng(seed)
    a_pass = training // batch
    chosen = np.concatenate(
        [order.permutation(training).reshape(a_pass, batch) for _ in range(seen)]
    )
    steps = np.arange(len(chosen))
    told = slopes[chosen, steps[:, None]].mean(axis=1).astype(np.float16).astype(np.float64)
    # What the batch's other texts add, as far as somebody knows who knows what such texts add.
    others = (batch - 1) / batch * slopes[:, steps].mean(axis=0)
    spread = (batch - 1) / batch**2 * slopes[:, steps].var(axis=0) + (told * 2**-11) ** 2 + 1e-12
    distance = (told - others - slopes[:, steps] / batch) ** 2 / spread
    found = []
    for text in range(training):
        its = distance[:, (chosen == text).any(axis=1)].sum(axis=1)
        found.append(1 + int((its < its[text]).sum()))
    return np.array(found)


def _summary(found: NDArray[np.int64]) -> dict[str, float]:
    return {
        "median": float(np.median(found)),
        "first": float((found == 1).mean()),
        "ten": float((found <= 10).mean()),
    }

"""Perplexity of a text under whatever scores it: an engine, or a model in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.scoring.batch_loss import passes
from seedtune.runtime.tasks import Batch, Encoded, Task

Score = Callable[[Batch], NDArray[np.float32]]
"""Log-probabilities float32 ``[1, N, C]`` of a batch's candidates, whoever computes them."""


def perplexity(score: Score, batches: Iterable[Batch]) -> float:
    """Over all positions of ``batches``, whose first candidates are the tokens that came."""
    total, count = 0.0, 0
    for batch in batches:
        total -= float(score(batch)[0, :, 0].sum(dtype=np.float64))
        count += len(batch.positions)
    return math.exp(total / count)


def message_batches(task: Task, examples: Sequence[Encoded], bounds: Bounds) -> Iterator[Batch]:
    """Batches of messages, their own tokens to be scored."""
    for _, batch in passes(task, examples, bounds):
        yield batch


def text_batches(text: NDArray[np.int64], bounds: Bounds) -> Iterator[Batch]:
    """``text`` int64 ``[n, length]``, as many rows at a time as the bounds allow, with the next
    tokens for candidates."""
    length = text.shape[1]
    if length > bounds.length or length - 1 > bounds.positions:
        raise ValueError(f"sequences of {length} tokens exceed {bounds}")
    rows = min(bounds.rows, bounds.positions // (length - 1))
    for first in range(0, len(text), rows):
        part = text[first : first + rows]
        places = np.arange(part.size).reshape(part.shape)[:, :-1]
        gold = np.zeros(len(part), np.int64)
        yield Batch(part, places.reshape(-1), part[:, 1:].reshape(-1, 1), gold)

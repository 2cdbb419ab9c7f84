"""Perplexity of a text under whatever scores it: an engine, or a model in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.tasks import Batch

Score = Callable[[Batch], NDArray[np.float32]]
"""Log-probabilities float32 ``[1, N, C]`` of a batch's candidates, whoever computes them."""


def perplexity(score: Score, text: NDArray[np.int64], bounds: Bounds) -> float:
    """Perplexity of the next tokens of ``text`` int64 ``[n, length]``."""
    total = 0.0
    for batch in text_batches(text, bounds):
        total -= float(score(batch).sum(dtype=np.float64))
    return math.exp(total / (text.shape[0] * (text.shape[1] - 1)))


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

"""The loss of a batch under several rows of values, in engine calls that the bounds allow."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .bundle import Bounds
from .engines import Engine
from .tasks import Encoded, Task


class BatchLoss:
    """Mean loss over examples, one number a row of values."""

    def __init__(self, engine: Engine, task: Task, bounds: Bounds) -> None:
        self._engine = engine
        self._task = task
        self._bounds = bounds

    def __call__(
        self, examples: Sequence[Encoded], rows: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Losses float64 ``[P]`` of ``examples`` under ``rows`` (float32 ``[P, K]``).

        Passes as large as the bounds allow, over examples of about one length, which pads less;
        how they are cut depends on the bounds and the batch alone.
        """
        totals = np.zeros(len(rows), dtype=np.float64)
        ordered = sorted(examples, key=lambda example: example.length)
        for part in split_batch(ordered, self._bounds):
            batch = self._task.collate(part)
            for first in range(0, len(rows), self._bounds.probes):
                group = rows[first : first + self._bounds.probes]
                logp = self._engine.score(batch.tokens, batch.positions, batch.candidates, group)
                losses = self._task.losses(logp, batch)
                totals[first : first + len(group)] += losses.sum(axis=1)
        return totals / len(examples)


def split_batch(examples: Sequence[Encoded], bounds: Bounds) -> Iterator[list[Encoded]]:
    """Cut a batch, in order, into parts whose tokens and positions the bounds allow in one pass."""
    part: list[Encoded] = []
    rows = positions = longest = 0
    for example in examples:
        tokens = (rows + example.rows) * max(longest, example.length)
        over = tokens > bounds.tokens or positions + len(example.positions) > bounds.positions
        if part and over:
            yield part
            part, rows, positions, longest = [], 0, 0, 0
        part.append(example)
        rows += example.rows
        positions += len(example.positions)
        longest = max(longest, example.length)
    if part:
        yield part

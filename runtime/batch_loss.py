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

        One engine call where the bounds allow; otherwise the batch is split into parts and the
        rows into groups. How depends on the bounds and the batch alone.
        """
        totals = np.zeros(len(rows), dtype=np.float64)
        for part in split_batch(examples, self._bounds):
            batch = self._task.collate(part)
            for first in range(0, len(rows), self._bounds.probes):
                group = rows[first : first + self._bounds.probes]
                logp = self._engine.score(batch.tokens, batch.positions, batch.candidates, group)
                losses = self._task.losses(logp, batch)
                totals[first : first + len(group)] += losses.sum(axis=1)
        return totals / len(examples)


def split_batch(examples: Sequence[Encoded], bounds: Bounds) -> Iterator[list[Encoded]]:
    """Cut a batch, in order, into parts within ``bounds.rows`` and ``bounds.positions``."""
    part: list[Encoded] = []
    rows = positions = 0
    for example in examples:
        more_rows, more_positions = example.rows, len(example.positions)
        over = rows + more_rows > bounds.rows or positions + more_positions > bounds.positions
        if part and over:
            yield part
            part, rows, positions = [], 0, 0
        part.append(example)
        rows += more_rows
        positions += more_positions
    if part:
        yield part

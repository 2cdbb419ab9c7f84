"""The loss of a batch under several rows of values, in engine calls that the bounds allow."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine
from ..tasks import Batch, Encoded, Observation, Task
from .answer_head import add_head, score_batch, score_with_inputs


class BatchLoss:
    """Losses of examples under rows of values."""

    def __init__(self, engine: Engine, task: Task, bounds: Bounds) -> None:
        self._engine = engine
        self._task = task
        self._bounds = bounds

    def __call__(
        self, examples: Sequence[Encoded], rows: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Mean losses float64 ``[P]`` of ``examples`` under ``rows`` (float32 ``[P, K]``)."""
        means: NDArray[np.float64] = self.each(examples, rows).mean(axis=1)
        return means

    def each(self, examples: Sequence[Encoded], rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Loss float64 ``[P, examples]`` of each example under ``rows`` (float32 ``[P, K]``).

        Passes as large as the bounds allow, over examples of about one length, which pads less;
        how they are cut depends on the bounds and the batch alone.
        """
        losses = np.empty((len(rows), len(examples)), dtype=np.float64)
        for numbers, batch in self._passes(examples):
            for first in range(0, len(rows), self._bounds.probes):
                group = rows[first : first + self._bounds.probes]
                logp = score_batch(self._engine, batch, group)
                losses[first : first + len(group), numbers] = self._task.losses(logp, batch)
        return losses

    def observe(
        self, examples: Sequence[Encoded], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], Observation]:
        """Losses float64 ``[1, examples]`` under ``values`` (float32 ``[K + R * (D + 1)]``), and
        from the same forwards what an answer head learns from."""
        losses = np.empty((1, len(examples)), dtype=np.float64)
        entries = self._engine.entries
        order: list[int] = []
        parts = []
        for numbers, batch in self._passes(examples):
            logp, inputs = score_with_inputs(self._engine, batch, values[None, :entries])
            parts.append(self._task.observe(logp[0], inputs[0], batch))
            logp = add_head(logp, inputs, values[None, entries:])
            losses[:, numbers] = self._task.losses(logp, batch)
            order += numbers
        back = np.argsort(order)
        return losses, Observation(
            np.concatenate([part.scores for part in parts])[back],
            np.concatenate([part.features for part in parts])[back],
            np.concatenate([part.gold for part in parts])[back],
        )

    def _passes(self, examples: Sequence[Encoded]) -> Iterator[tuple[list[int], Batch]]:
        """The examples' numbers and batch of each pass."""
        order = sorted(range(len(examples)), key=lambda number: examples[number].length)
        done = 0
        for part in split_batch([examples[number] for number in order], self._bounds):
            yield order[done : done + len(part)], self._task.collate(part)
            done += len(part)


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

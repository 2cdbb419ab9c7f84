"""The losses of a batch under several rows of values, in engine calls that the bounds allow."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine
from ..tasks import Batch, Encoded, Observation, Task
from .answer_head import add_head, score_batch, score_with_inputs


class BatchLook:
    """One batch, to be looked at under rows of values (see ``estimators.Look``)."""

    def __init__(
        self, engine: Engine, task: Task, bounds: Bounds, examples: Sequence[Encoded]
    ) -> None:
        """
        Args:
            bounds: of a pass, which may be smaller than the program's.
        """
        self._engine = engine
        self._task = task
        self._bounds = bounds
        self._examples = examples

    @property
    def at_once(self) -> int:
        """Rows of values that one pass takes."""
        return self._bounds.probes

    def losses(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Loss float64 ``[n, examples]`` of each example under ``rows`` (float32 ``[n, K]``).

        Passes as large as the bounds allow, over examples of about one length, which pads less;
        how they are cut depends on the bounds and the batch alone.
        """
        losses = np.empty((len(rows), len(self._examples)), dtype=np.float64)
        for numbers, batch in passes(self._task, self._examples, self._bounds):
            for first in range(0, len(rows), self._bounds.probes):
                group = rows[first : first + self._bounds.probes]
                logp = score_batch(self._engine, batch, group)
                losses[first : first + len(group), numbers] = self._task.losses(logp, batch)
        return losses

    def mean_losses(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean losses float64 ``[n]`` of the batch under ``rows`` (float32 ``[n, K]``)."""
        means: NDArray[np.float64] = self.losses(rows).mean(axis=1)
        return means

    def groups(self, copies: int) -> Iterator[list[int]]:
        """Numbers of the batch's examples in groups alike in length, few enough that
        ``copies`` rows of values for each are no more than a pass takes."""
        order = sorted(range(len(self._examples)), key=lambda number: self._examples[number].length)
        size = max(1, self._bounds.probes_at_most // copies)
        for first in range(0, len(order), size):
            yield order[first : first + size]

    def own_losses(self, rows: NDArray[np.float32], numbers: Sequence[int]) -> NDArray[np.float64]:
        """Loss float64 ``[n]`` of example ``numbers[i]`` of the batch under ``rows[i]`` alone.

        Where the program takes rows by probe, many examples of their own values share a pass;
        an older program does one at a time.

        Args:
            rows: float32 ``[n, K]``.
        """
        losses = np.empty(len(rows), dtype=np.float64)
        for first, last in self._own_passes(numbers):
            examples = [self._examples[number] for number in numbers[first:last]]
            batches = [self._task.collate([example]) for example in examples]
            together = batches[0]
            if self._bounds.rows_by_probe:
                together = _by_probe(batches, self._task)
            logp = self._engine.score(together, rows[first:last]).logp
            for place, batch in enumerate(batches):
                own = logp[place : place + 1, : len(batch.positions)]
                losses[first + place] = self._task.losses(own, batch)[0, 0]
        return losses

    def _own_passes(self, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
        """First and last (exclusive) row of each pass of ``own_losses``, in order."""
        bounds = self._bounds
        most = bounds.probes_at_most if bounds.rows_by_probe else 1
        first = 0
        while first < len(numbers):
            last, height, length, scored = first, 0, 2, 0
            while last < len(numbers) and last - first < most:
                example = self._examples[numbers[last]]
                height = max(height, example.rows)
                length = max(length, example.length)
                scored = max(scored, len(example.positions))
                share = bounds.share(last + 1 - first)
                fits = height * length <= share.tokens and scored <= share.positions
                if not fits and last > first:
                    break
                last += 1
            yield first, last
            first = last

    def observe(self, values: NDArray[np.float32]) -> tuple[NDArray[np.float64], Observation]:
        """Losses float64 ``[1, examples]`` under ``values`` (float32 ``[K + R * (D + 1)]``), and
        from the same forwards what an answer head learns from."""
        losses = np.empty((1, len(self._examples)), dtype=np.float64)
        entries = self._engine.entries
        order: list[int] = []
        parts = []
        for numbers, batch in passes(self._task, self._examples, self._bounds):
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


def _by_probe(batches: Sequence[Batch], task: Task) -> Batch:
    """Batches that each are a probe's own, as one; short ones are padded, with rows of padding and
    with positions that nobody reads."""
    height = max(len(batch.tokens) for batch in batches)
    length = max(batch.tokens.shape[1] for batch in batches)
    scored = max(len(batch.positions) for batch in batches)
    choices = max(batch.candidates.shape[1] for batch in batches)
    tokens = np.full((len(batches), height, length), task.pad_id, dtype=np.int64)
    positions = np.zeros((len(batches), scored), dtype=np.int64)
    candidates = np.zeros((len(batches), scored, choices), dtype=np.int64)
    for place, batch in enumerate(batches):
        rows, columns = divmod(batch.positions, batch.tokens.shape[1])
        tokens[place, : len(batch.tokens), : batch.tokens.shape[1]] = batch.tokens
        positions[place, : len(rows)] = rows * length + columns
        candidates[place, : len(rows), : batch.candidates.shape[1]] = batch.candidates
    gold = np.concatenate([batch.gold for batch in batches])
    return Batch(tokens, positions, candidates, gold)


def passes(
    task: Task, examples: Sequence[Encoded], bounds: Bounds
) -> Iterator[tuple[list[int], Batch]]:
    """The examples' numbers and batch of each pass, sorted by length, which pads less."""
    order = sorted(range(len(examples)), key=lambda number: examples[number].length)
    done = 0
    for part in split_batch([examples[number] for number in order], bounds):
        yield order[done : done + len(part)], task.collate(part)
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

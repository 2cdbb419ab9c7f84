"""One batch, looked at under rows of values, in engine calls that the bounds allow."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine, Scores, Terms
from ..tasks import Batch, Encoded, Task
from .part import PartKind


class Forward(NamedTuple):
    """One pass over some of a batch's examples."""

    numbers: list[int]
    """Of these examples in the batch."""
    batch: Batch
    scores: Scores


class Look:
    """One batch, as an estimator may look at it.

    Passes are as large as the bounds allow, over examples of about one length, which pads less; how
    they are cut depends on the bounds and the batch alone.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        bounds: Bounds,
        examples: Sequence[Encoded],
        kinds: Mapping[str, PartKind] | None = None,
    ) -> None:
        """
        Args:
            bounds: of a pass, which may be smaller than the program's.
            kinds: what the model's gradients are made of, as ``Start`` has it.
        """
        self.task, self.kinds = task, kinds or {}
        self._engine, self._bounds, self._examples = engine, bounds, examples

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self._examples)

    @property
    def at_once(self) -> int:
        """Rows of values that one pass takes."""
        return self._bounds.probes

    def losses(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Loss float64 ``[n, examples]`` of each example under ``rows`` (float32 ``[n, K]``)."""
        losses = np.empty((len(rows), len(self._examples)), dtype=np.float64)
        # Rows of values outside: what is read under them, a prefix, serves all of their passes.
        for first in range(0, len(rows), self._bounds.probes):
            group = rows[first : first + self._bounds.probes]
            for numbers, batch in passes(self.task, self._examples, self._bounds):
                logp = self._engine.score(batch, group).logp
                losses[first : first + len(group), numbers] = self.task.losses(logp, batch)
        return losses

    def mean_losses(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean losses float64 ``[n]`` of the batch under ``rows`` (float32 ``[n, K]``)."""
        means: NDArray[np.float64] = self.losses(rows).mean(axis=1)
        return means

    def part(self, numbers: Sequence[int]) -> "Look":
        """A look at some of the batch's examples."""
        examples = [self._examples[number] for number in numbers]
        return Look(self._engine, self.task, self._bounds, examples, self.kinds)

    def forwards(
        self, values: NDArray[np.float32], terms: Terms = (), *, inside: bool = False
    ) -> Iterator[Forward]:
        """What the passes over the batch give under the sensitive values (float32 ``[K]``) and
        terms alone: scores of one probe, for parts that learn from hidden states.

        Args:
            terms, inside: see ``Engine.score``.
        """
        for numbers, batch in passes(self.task, self._examples, self._bounds):
            scores = self._engine.score(batch, values[None], terms=terms, inside=inside)
            yield Forward(numbers, batch, scores)

    def others(
        self, rows: Sequence[NDArray[np.int64]], values: NDArray[np.float32], terms: Terms
    ) -> Iterator[Scores]:
        """The same of the first tokens of other texts than the batch's, as many as the bounds
        allow, one text after the other, each of two tokens and more."""
        for row in rows:
            tokens = row[None, : self._bounds.length]
            places = np.arange(min(tokens.shape[1], self._bounds.positions))
            none = np.zeros((len(places), 1), np.int64)
            batch = Batch(tokens, places, none, np.zeros(1, np.int64))
            yield self._engine.score(batch, values[None], terms=terms, inside=True)


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

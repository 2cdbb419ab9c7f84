"""The losses of a batch under several rows of values, in engine calls that the bounds allow."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine
from ..tasks import Batch, Encoded, Observation, Task
from .answer_head import add_head, score_batch, score_with_inputs
from .text_head import TextHead
from .word_memory import BEFORE, Said


class Tokens(NamedTuple):
    """Tokens of a batch."""

    states: NDArray[np.float32]
    """float32 ``[N, S]``: what an adapter reads."""
    words: NDArray[np.int64]
    """int64 ``[N]``: what was said."""
    losses: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """From log-probabilities of the words (``[N]``) the loss of each example, ``[1, examples]``."""
    texts: list[Said]
    """The words by texts, with those in front of them."""


class BatchLook:
    """One batch, to be looked at under rows of values (see ``estimators.Look``)."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        bounds: Bounds,
        examples: Sequence[Encoded],
        text: TextHead | None = None,
    ) -> None:
        """
        Args:
            bounds: of a pass, which may be smaller than the program's.
            text: what the bundle has for a head for text, where the task takes one.
        """
        self.text = text
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
                logp = score_batch(self._engine, batch, group, self.text)
                losses[first : first + len(group), numbers] = self._task.losses(logp, batch)
        return losses

    def mean_losses(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean losses float64 ``[n]`` of the batch under ``rows`` (float32 ``[n, K]``)."""
        means: NDArray[np.float64] = self.losses(rows).mean(axis=1)
        return means

    def part(self, numbers: Sequence[int]) -> "BatchLook":
        """A look at some of the batch's examples."""
        examples = [self._examples[number] for number in numbers]
        return BatchLook(self._engine, self._task, self._bounds, examples, self.text)

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

    def tokens(self, values: NDArray[np.float32]) -> Tokens:
        """Every scored token of the batch under the sensitive values (float32 ``[K]``) alone: what
        a head for text learns from. For tasks that write, of one candidate a position."""
        assert self._engine.adapter_shape is not None
        width = self._engine.adapter_shape[1]
        states, words, parts = [], [], []
        texts: list[Said] = []
        for numbers, batch in passes(self._task, self._examples, self._bounds):
            hidden = self._engine.score(batch, values[None]).hidden
            assert hidden is not None
            states.append(hidden[0, :, :width])
            words.append(batch.candidates[:, 0])
            parts.append((numbers, batch))
            texts += said_in(batch)

        def losses(logp: NDArray[np.float64]) -> NDArray[np.float64]:
            found = np.empty((1, len(self._examples)), dtype=np.float64)
            first = 0
            for numbers, batch in parts:
                own = logp[None, first : first + len(batch.positions), None]
                found[:, numbers] = self._task.losses(own.astype(np.float32), batch)
                first += len(batch.positions)
            return found

        return Tokens(np.concatenate(states), np.concatenate(words), losses, texts)


def said_in(batch: Batch) -> list[Said]:
    """The scored words of a batch of one candidate a position, cut where they do not follow one
    another."""
    positions, length = batch.positions, batch.tokens.shape[1]
    apart = (np.diff(positions) != 1) | (np.diff(batch.row_of) != 0)
    texts = []
    for places in np.split(np.arange(len(positions)), 1 + np.flatnonzero(apart)):
        row, column = divmod(int(positions[places[0]]), length)
        before = batch.tokens[row, max(0, column + 1 - BEFORE) : column + 1]
        texts.append(Said(before, batch.candidates[places, 0]))
    return texts


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

"""What a run learns of a text head: its weights and, behind them, a memory of words or none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..engines import Engine, Scores, Terms
from ..errors import TuningError
from ..schema import Whole, check
from ..tasks import Batch, Task
from .batch_loss import Look
from .block_terms import BlockTerms, Inside
from .part import Description, Part
from .text_head import Observed, TextHead
from .word_memory import BEFORE, WORDS, Said, WordMemory

KIND = "text-adapter"
PULL_SHARE = 0.5
"""Tokens of generic text in a step over those of the batch."""
LEAST_PULL = 32
"""These at least, where they go through the program."""


@dataclass(frozen=True, eq=False)
class TextPart(Part):
    """The part (see ``Part``)."""

    head: TextHead
    own: NDArray[np.float32]
    """float32 ``[O * I]``; behind it what is learned of terms, and the memory of words, if any."""
    deep: bool = False
    """Whether it has terms of the blocks below."""
    enters_program = writes = True

    @property
    def weights(self) -> NDArray[np.float32]:
        """M, float32 ``[O * I]``, and the terms behind it: a view."""
        return self.own[: self._moved]

    @property
    def words(self) -> NDArray[np.float32]:
        """float32 ``[WORDS]`` or ``[0]``."""
        return self.own[self._moved :]

    @property
    def terms(self) -> BlockTerms | None:
        """What is learned below the head; None where nothing is."""
        return self.head.terms if self.deep else None

    @property
    def _moved(self) -> int:
        return self.head.entries + entries_of(self.terms)

    @property
    def memory(self) -> WordMemory | None:
        """The words, with their index; None where there are none.

        Raises:
            TuningError: what stands there are no words.
        """
        return self.head.memory(self.words)

    @property
    def description(self) -> Description:
        outputs, inputs = self.head.shape
        return describe(outputs, inputs, len(self.words), entries_of(self.terms))

    def copy(self) -> Self:
        return replace(self, own=self.own.copy())

    def for_task(self, task: Task, engine: Engine) -> Self:
        if not task.writes or engine.adapter_shape is None:
            raise TuningError(
                "the values hold a text head, which this task or this program has no place for: "
                "give the bundle and the task that they were tuned with"
            )
        _ = self.memory  # says what is wrong with it
        return self

    def changes(self) -> Iterator[tuple[int, int, NDArray[np.float32], NDArray[np.float32]]]:
        """Of its terms (see ``BlockTerms.changes``); nothing where it has none."""
        if self.terms is not None:
            yield from self.terms.changes(self.weights[self.head.entries :])

    @property
    def inputs(self) -> Mapping[str, Any]:
        weights, entries = self.weights, self.head.entries
        found: dict[str, Any] = {"adapter": self.head.adapter(weights[:entries])}
        if self.terms is not None:
            found["terms"] = self.terms.terms(weights[entries:])
        return found

    def changed(self, scores: Scores, batch: Batch) -> NDArray[np.float32]:
        memory = self.memory
        if memory is None:
            return scores.logp
        whole = batch.whole
        logp = memory.mixed(scores.logp[0], whole.tokens, whole.positions, whole.candidates)
        return logp[None]

    def mixed_next(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        memory = self.memory
        return logits if memory is None else memory.mixed_next(logits, tokens)

    @property
    def memory_bytes(self) -> int:
        below = 0 if self.terms is None else self.terms.memory_bytes
        return self.head.memory_bytes + below


@dataclass(frozen=True)
class TextHeads:
    """The kind (see ``PartKind``)."""

    head: TextHead

    @classmethod
    def of(cls, bundle: Bundle) -> "TextHeads | None":
        """Of a bundle; None where it has nothing for one."""
        head = TextHead.of(bundle)
        return None if head is None else cls(head)

    def fits(self, task: Task, engine: Engine) -> bool:
        return task.writes and engine.adapter_shape is not None

    def restore(self, description: Description, own: NDArray[np.float32] | None = None) -> TextPart:
        size = Whole(1, 1 << 24)
        check(
            dict(description),
            {
                "kind": str,
                "outputs": size,
                "inputs": size,
                "words": Whole(0, WORDS),
                "terms": Whole(0, 1 << 28),
            },
        )
        shape, words = (description["outputs"], description["inputs"]), description["words"]
        terms, there = description["terms"], entries_of(self.head.terms)
        if shape != self.head.shape or words not in (0, WORDS) or terms not in (0, there):
            raise ValueError(
                f"a text head of {shape}, {words} words and {terms} numbers of terms, not "
                f"{self.head.shape} and {there}"
            )
        count = self.head.entries + terms + words
        own = np.zeros(count, np.float32) if own is None else own
        if own.shape != (count,):
            raise ValueError(f"{own.size} numbers of a text head, not {count}")
        return TextPart(self.head, own, terms > 0)


def describe(outputs: int, inputs: int, words: int, terms: int) -> Description:
    """A text head of O, I, a memory of so many words and so many numbers of terms."""
    return {"kind": KIND, "outputs": outputs, "inputs": inputs, "words": words, "terms": terms}


def entries_of(terms: BlockTerms | None) -> int:
    """Numbers that are learned of terms; 0 where there are none."""
    return 0 if terms is None else terms.entries


class Tokens(NamedTuple):
    """Tokens of a batch."""

    observed: Observed
    losses: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """From log-probabilities of the words (``[N]``) the loss of each example, ``[1, examples]``."""
    texts: list[Said]
    """The words by texts, with those in front of them."""


def tokens_of(look: Look, values: NDArray[np.float32], width: int, terms: Terms = ()) -> Tokens:
    """Every scored token of the batch under the sensitive values (float32 ``[K]``) and terms alone:
    what a text head learns from. For tasks that write, of one candidate a position.

    Args:
        width: S, of the hidden states that an adapter reads.
        terms: where they are learned, too.
    """
    states, words, inside, parts = [], [], [], []
    texts: list[Said] = []
    for numbers, batch, scores in look.forwards(values, terms, inside=len(terms) > 0):
        assert scores.hidden is not None
        states.append(scores.hidden[0, :, :width])
        words.append(batch.candidates[:, 0])
        inside.append(scores.inside)
        parts.append((numbers, batch))
        texts += said_in(batch.whole)

    def losses(logp: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.empty((1, look.examples), dtype=np.float64)
        first = 0
        for numbers, batch in parts:
            own = logp[None, first : first + len(batch.positions), None]
            found[:, numbers] = look.task.losses(own.astype(np.float32), batch)
            first += len(batch.positions)
        return found

    kept = Inside.of(inside) if len(terms) else None
    return Tokens(Observed(np.concatenate(states), np.concatenate(words), kept), losses, texts)


def drawn_numbers(count: int, most: int, *, seed: int, step: int) -> NDArray[np.int64]:
    """Of generic tokens or rows, below ``most``, int64 ``[count]``: the same on every platform."""
    found = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw(max(1, count))
    return np.asarray(found % np.uint64(most)).astype(np.int64)


def generic_beside(
    look: Look,
    values: NDArray[np.float32],
    head: TextHead,
    terms: Terms,
    tokens: int,
    *,
    seed: int,
    step: int,
) -> Observed:
    """The generic tokens of a step beside so many of its batch, under the sensitive values (float32
    ``[K]``) and terms."""
    assert head.terms is not None
    rows, length = head.terms.part.tokens.shape
    count = max(LEAST_PULL, round(PULL_SHARE * tokens))
    picked = drawn_numbers(-(-count // length), rows, seed=seed, step=step)
    return generic_tokens(look, values, head, terms, picked, count)


def generic_tokens(
    look: Look,
    values: NDArray[np.float32],
    head: TextHead,
    terms: Terms,
    rows: NDArray[np.int64],
    count: int,
) -> Observed:
    """So many tokens of the generic text's ``rows`` under terms, from the start of each on."""
    assert head.terms is not None
    text = head.terms.part.tokens
    length, width = text.shape[1], head.width
    texts, numbers, left = [], [], count
    for row in rows:
        texts.append(text[row, : max(2, left)].astype(np.int64))  # a program takes two and more
        left -= length
    found = list(look.others(texts, values, terms))
    for row, scores in zip(rows, found, strict=True):
        numbers.append(row * length + np.arange(scores.logp.shape[1]))
    states = [each.hidden[0, :, :width] for each in found if each.hidden is not None]
    inside = Inside.of([each.inside for each in found])
    return Observed(np.concatenate(states), np.concatenate(numbers), inside)


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

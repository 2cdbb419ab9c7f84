"""What a run learns of a text head: its weights and, behind them, a memory of words or none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..engines import Engine, Scores
from ..errors import TuningError
from ..schema import Whole, check
from ..tasks import Batch, Task
from .batch_loss import Look
from .part import Description
from .text_head import TextHead
from .word_memory import BEFORE, WORDS, Said, WordMemory

KIND = "text-adapter"


@dataclass(frozen=True, eq=False)
class TextPart:
    """The part (see ``Part``)."""

    head: TextHead
    own: NDArray[np.float32]
    """float32 ``[O * I]``, or ``[O * I + WORDS]`` with a memory of words."""

    @property
    def weights(self) -> NDArray[np.float32]:
        """M, float32 ``[O * I]``, a view."""
        return self.own[: self.head.entries]

    @property
    def words(self) -> NDArray[np.float32]:
        """float32 ``[WORDS]`` or ``[0]``."""
        return self.own[self.head.entries :]

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
        return describe(outputs, inputs, len(self.words))

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

    @property
    def enters_program(self) -> bool:
        return True

    @property
    def inputs(self) -> Mapping[str, NDArray[np.float32]]:
        return {"adapter": self.head.adapter(self.weights)}

    def changed(self, scores: Scores, batch: Batch) -> NDArray[np.float32]:
        memory = self.memory
        if memory is None:
            return scores.logp
        whole = batch.whole
        logp = memory.mixed(scores.logp[0], whole.tokens, whole.positions, whole.candidates)
        return logp[None]

    @property
    def writes(self) -> bool:
        return True

    def mixed_next(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        memory = self.memory
        return logits if memory is None else memory.mixed_next(logits, tokens)

    @property
    def memory_bytes(self) -> int:
        return self.head.memory_bytes


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
            {"kind": str, "outputs": size, "inputs": size, "words": Whole(0, WORDS)},
        )
        shape, words = (description["outputs"], description["inputs"]), description["words"]
        if shape != self.head.shape or words not in (0, WORDS):
            raise ValueError(f"a text head of {shape} and {words} words, not {self.head.shape}")
        count = self.head.entries + words
        own = np.zeros(count, np.float32) if own is None else own
        if own.shape != (count,):
            raise ValueError(f"{own.size} numbers of a text head, not {count}")
        return TextPart(self.head, own)


def describe(outputs: int, inputs: int, words: int) -> Description:
    """A text head of O, I and a memory of so many words."""
    return {"kind": KIND, "outputs": outputs, "inputs": inputs, "words": words}


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


def tokens_of(look: Look, values: NDArray[np.float32], width: int) -> Tokens:
    """Every scored token of the batch under the sensitive values (float32 ``[K]``) alone: what a
    text head learns from. For tasks that write, of one candidate a position.

    Args:
        width: S, of the hidden states that an adapter reads.
    """
    states, words, parts = [], [], []
    texts: list[Said] = []
    for numbers, batch, scores in look.forwards(values):
        assert scores.hidden is not None
        states.append(scores.hidden[0, :, :width])
        words.append(batch.candidates[:, 0])
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

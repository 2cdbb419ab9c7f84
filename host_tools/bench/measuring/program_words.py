"""Next words of the int4 program: its own probabilities, and ranks from the states it returns.

The program gives the probability of the word that came. Which words were likelier follows from what
its output head reads and that head's own words, multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import DEFAULT_BOUNDS, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.scoring.text_head import TextHead
from seedtune.runtime.scoring.text_part import TextPart
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.word_memory import WINDOW, WordMemory
from seedtune.runtime.tasks import Batch, encode_rows, task_for

from .next_words import Words, figures, message_batches
from .perplexity import text_batches

AT_ONCE = 64
"""Positions that are looked at with all words."""
CONTEXT = WINDOW + 1
"""Words before a position, as many as a memory looks at."""


@dataclass(frozen=True)
class Seen:
    """Positions of some text as the program saw them."""

    logp: NDArray[np.float64]
    """``[n]``, of the word that came."""
    gold: NDArray[np.int64]
    """``[n]``, that word."""
    context: NDArray[np.int64]
    """``[n, CONTEXT]``, the words before it; -1 where there is none."""
    read: NDArray[np.float32]
    """``[n, width]``, what the output head reads."""
    memory: WordMemory | None = None
    """A memory of words, which has its part in ``logp`` and in what is likely."""


class ProgramWords:
    """The program of a bundle that has a head for text, on messages.

    Args:
        settings: ``bundle`` (a path), ``length``, ``threads`` and ``other`` (tokens int64
            ``[n, length]`` of text that has nothing to do with anybody's messages).
        spec: the task's.

    Raises:
        SeedtuneError: the bundle says nothing of its output head's words.
    """

    def __init__(self, settings: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        bundle = open_bundle(settings["bundle"])
        head = TextHead.of(bundle)
        if head is None:
            raise SeedtuneError(f"{bundle.path}: has no head for text; export the model again")
        self._head, self._bounds = head, replace(bundle.bounds, length=settings["length"])
        self._task = task_for(bundle, spec, bounds=self._bounds, on_long="truncate")
        self._engine = open_engine(bundle, settings["threads"] or "auto")
        self._values = Values(bundle.values.astype(np.float32))
        self._other = settings["other"]
        self.vocabulary = bundle.vocab_size

    def messages(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Batch]:
        """Batches of a person's messages."""
        return message_batches(self._task, encode_rows(self._task, rows), self._bounds)

    def other_text(self) -> Iterator[Batch]:
        """Batches of text that has nothing to do with anybody's messages."""
        return text_batches(self._other, DEFAULT_BOUNDS)

    def see(self, batches: Iterable[Batch], values: Values | None = None) -> Seen:
        """Run the program under ``values``; by default as it was exported."""
        logp, gold, context, read = [], [], [], []
        values = values or self._values
        part, adapter = values.part, values.inputs.get("adapter")
        memory = part.memory if isinstance(part, TextPart) else None
        assert self._engine.adapter_shape is not None
        width = self._engine.adapter_shape[1]
        for batch in batches:
            scores = self._engine.score(batch, values.sensitive[None], **values.inputs)
            assert scores.hidden is not None
            states = scores.hidden[0, :, :width]
            mixed = scores.logp if part is None else part.changed(scores, batch)
            logp.append(mixed[0, :, 0].astype(np.float64))
            gold.append(batch.candidates[:, 0])
            tokens, column = batch.tokens.reshape(-1), batch.positions % batch.tokens.shape[1]
            back = np.arange(CONTEXT)[::-1]
            place = np.maximum(batch.positions[:, None] - back, 0)
            context.append(np.where(column[:, None] >= back, tokens[place], -1))
            own = self._head.frame.read(states)
            read.append(own if adapter is None else own + states @ adapter.T)
        return Seen(
            np.concatenate(logp),
            np.concatenate(gold),
            np.concatenate(context),
            np.concatenate(read),
            memory,
        )

    def figures(self, seen: Seen) -> dict[str, float]:
        """``next_words.figures`` of the program."""
        table = self._head.words.vectors(slice(0, self.vocabulary))
        found: list[Words] = []
        for first in range(0, len(seen.gold), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            logits = seen.read[part] @ table.T
            if seen.memory is not None:
                for row, context in zip(logits, seen.context[part], strict=True):
                    row[:] = seen.memory.mixed_next(row, context[context >= 0].tolist())
            gold = logits[np.arange(len(logits)), seen.gold[part]]
            found.append((seen.logp[part], (logits > gold[:, None]).sum(axis=1)))
        return figures(found)

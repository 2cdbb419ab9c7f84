"""Next words of the int4 program: its own probabilities, and ranks from the states it returns.

The program gives the probability of the word that came. Which words were likelier follows from its
last hidden state and the model's output table in float32, which is not in the program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.tasks import Batch, encode_rows, task_from_spec

from ..data.calibration import load_calibration
from .fidelity import text_batches
from .next_words import Words, figures, message_batches
from .sender_data import SPEC

AT_ONCE = 64
"""Positions that are looked at with all words."""


@dataclass(frozen=True)
class Seen:
    """Positions of some text as the program saw them."""

    logp: NDArray[np.float64]
    """``[n]``, of the word that came."""
    gold: NDArray[np.int64]
    """``[n]``, that word."""
    context: NDArray[np.int64]
    """``[n, 2]``, the two words before it; -1 where there is none."""
    states: NDArray[np.float32]
    """``[n, width]``, the last block's, of mean square 1."""

    def parts(self) -> Iterator[slice]:
        for first in range(0, len(self.gold), AT_ONCE):
            yield slice(first, min(first + AT_ONCE, len(self.gold)))


class ProgramWords:
    """The program of a bundle, on messages.

    Args:
        settings: ``bundle`` (a path), ``length`` and ``threads``; ``source`` of the float model.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.bundle: Bundle = open_bundle(settings["bundle"])
        self._source = settings["source"]
        self.bounds = replace(self.bundle.bounds, length=settings["length"])
        self.task = task_from_spec(
            SPEC, self.bundle.tokenizer(), self.bounds, self.bundle.pad_id, on_long="truncate"
        )
        self.engine = open_engine(self.bundle, settings["threads"] or "auto")
        self.vocabulary = self.bundle.vocab_size
        self._values = self.bundle.values.astype(np.float32)[None]
        width = int(self.bundle.manifest["model"]["hidden_size"])
        last = len(self.bundle.hidden_blocks) * width
        self._last = slice(last - width, last)
        self._float: Any = None

    def messages(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Batch]:
        """Batches of a person's messages."""
        return message_batches(self.task, encode_rows(self.task, rows), self.bounds)

    def other_text(self) -> Iterator[Batch]:
        """Batches of text that has nothing to do with anybody's messages."""
        return text_batches(load_calibration(self._model().tokenizer).held_out, self.bundle.bounds)

    def see(self, batches: Iterable[Batch], values: NDArray[np.float32] | None = None) -> Seen:
        """Run the program under ``values`` float32 ``[K]``, by default as it was exported."""
        logp, gold, context, states = [], [], [], []
        row = self._values if values is None else values[None]
        for batch in batches:
            scores = self.engine.score(batch, row)
            assert scores.hidden is not None
            logp.append(scores.logp[0, :, 0].astype(np.float64))
            gold.append(batch.candidates[:, 0])
            tokens, column = batch.tokens.reshape(-1), batch.positions % batch.tokens.shape[1]
            before = np.where(column > 0, tokens[batch.positions - 1], -1)
            context.append(np.stack([before, tokens[batch.positions]], axis=1))
            states.append(scores.hidden[0, :, self._last])
        return Seen(*map(np.concatenate, (logp, gold, context, states)))

    def figures(self, seen: Seen, own: Any = None, weight: float = 0.0) -> dict[str, float]:
        """``next_words.figures`` of the program with ``own`` mixed in (see ``sender_memory``)."""
        found: list[Words] = []
        for part in seen.parts():
            likely = self._distribution(seen.states[part])
            rows, gold = np.arange(len(likely)), seen.gold[part]
            logp = seen.logp[part]
            if own is not None:
                mine = own(seen, part)
                logp = np.log((1 - weight) * np.exp(logp) + weight * mine[rows, gold])
                likely = (1 - weight) * likely + weight * mine
            found.append((logp, (likely > likely[rows, gold][:, None]).sum(axis=1)))
        return figures(found)

    def _model(self) -> Any:
        # Loaded late: its memory is only judging's.
        if self._float is None:
            from seedtune.export.model.load_model import load_causal_lm

            self._float = load_causal_lm(self._source)
        return self._float

    def _distribution(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Over all words, float32 ``[n, V]``."""
        model = self._model().model
        weight = model.base_model.norm.weight.detach().numpy()
        table = model.get_output_embeddings().weight.detach().numpy()
        logits = (states * weight) @ table.T
        logits -= logits.max(axis=1, keepdims=True)
        likely: NDArray[np.float32] = np.exp(logits)
        return likely / likely.sum(axis=1, keepdims=True)

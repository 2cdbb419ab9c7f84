"""Toy programs for the tiny bundle that answer by text and values, so that a run has an outcome."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.tasks import Batch
from tiny_bundle import BOUNDS, tiny_tokenizer


class ValueEngine(Engine):
    """A toy program whose label words depend on the last word and on the values."""

    entries, hidden_width = 12, 0

    def score(self, batch: Batch, values: NDArray[np.float32], **nothing: Any) -> Scores:
        tokens = batch.tokens
        assert len(values) <= BOUNDS.probes and tokens.size <= BOUNDS.tokens
        rows = batch.positions // tokens.shape[1]
        hint = np.cos(tokens.sum(axis=1)[rows].astype(np.float64))
        first = np.tanh(values[:, :1] * hint[None] + values[:, 1:2])
        logits = np.stack([first, -first], axis=2)
        logp = logits - np.logaddexp.reduce(logits, axis=2)[..., None] - 0.5
        return Scores(logp.astype(np.float32), None)


class HiddenEngine(ValueEngine):
    """The same program with hidden states, in which the word " bad" stands out."""

    hidden_width = 8
    _bad = tiny_tokenizer().encode(" bad").ids[0]

    def score(self, batch: Batch, values: NDArray[np.float32], **nothing: Any) -> Scores:
        seen = batch.tokens[batch.positions // batch.tokens.shape[1]]
        hidden = np.cos(seen.sum(axis=1)[:, None] * np.arange(1, 9)).astype(np.float32)
        hidden[:, 0] += 3 * (seen == self._bad).any(axis=1)
        return Scores(super().score(batch, values).logp, np.stack([hidden] * len(values)))

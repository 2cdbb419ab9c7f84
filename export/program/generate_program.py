"""The eager module of the method ``generate``: some tokens behind a cache of those before them in,
the logits of the next one and what to append to the cache out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .cached_attention import NAME, Cache, CachedPass, install_cached_attention
from .score_program import ScoreProgram
from .sensitive_linear import Columns

DEFAULT_CONTEXT = 2048
CHUNK = 64
"""Tokens of a prompt that are read in one pass, at most."""


@dataclass(frozen=True)
class GenerateBounds:
    """Largest sizes that the method accepts."""

    chunk: int
    """Tokens of one pass."""
    context: int
    """Places of the cache; the tokens of a whole text."""

    @classmethod
    def of(cls, context: int) -> "GenerateBounds":
        """Of texts of ``context`` tokens."""
        return cls(min(CHUNK, context), context)


class GenerateProgram(nn.Module):
    """``generate(tokens [1, T], start [1], columns [1, F], adapter [D, S], terms, cache)``.

    ``terms`` are those of ``score``, if it takes some.

    ``columns`` is what the method of this name makes of values, which a text needs once. ``cache``
    is, block by block, keys ``[KV, d, S]`` and values ``[KV, S, d]``, of which the first ``start``
    places are filled. Returns the logits float32 ``[1, V]`` behind the last token and each block's
    new keys and values, ``[KV, T, d]``.

    It shares every module with ``score``, hence every weight in the file.
    """

    def __init__(self, score: ScoreProgram, entries: int, bounds: GenerateBounds) -> None:
        """See ``GenerateBounds``; ``entries`` is K."""
        super().__init__()
        self.score = score
        self.bounds = bounds
        self.entries = entries
        self.columns = Columns(score)
        self.running = CachedPass()
        self.shapes = score.cache_shapes
        """``(KV, d)`` of each block."""

    def forward(
        self,
        tokens: torch.Tensor,
        start: torch.Tensor,
        columns: torch.Tensor,
        adapter: torch.Tensor,
        *more: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        terms, cache = self.score.split(more)
        past = list(zip(cache[::2], cache[1::2], strict=True))
        hidden, states, new = self._run(tokens, start, columns, terms, past)
        logits = self.score.logits(hidden, states, adapter)[0]
        return (logits, *(tensor for block in new for tensor in block))

    def example(self, vocab_size: int) -> tuple[torch.Tensor, ...]:
        """Inputs inside the bounds whose sizes differ, so that tracing confuses no two of them."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, vocab_size, (1, min(20, self.bounds.chunk)), generator=generator)
        slots = min(37, self.bounds.context)
        cache = [
            torch.zeros(kv_heads, *shape)
            for kv_heads, width in self.shapes
            for shape in ((width, slots), (slots, width))
        ]
        tuned = map(torch.zeros, (self.score.adapter_shape, *self.score.terms_shapes))
        return (tokens, torch.tensor([5]), self._no_columns(), *tuned, *cache)

    def _no_columns(self) -> torch.Tensor:
        return torch.zeros(1, max(1, self.columns.size))  # a method takes no empty input

    def _run(
        self,
        tokens: torch.Tensor,
        start: torch.Tensor,
        columns: torch.Tensor,
        terms: Sequence[torch.Tensor],
        past: list[Cache],
    ) -> tuple[torch.Tensor, torch.Tensor, list[Cache]]:
        """The last token's hidden state and tapped states, and each block's new keys and values."""
        score = self.score
        length = tokens.shape[1]
        self.running.begin(length, start, past)
        score.probe_values.begin_scattered(columns)
        if score.terms is not None:
            score.terms.begin(terms)
        embedded = score.embedding(tokens.reshape(length))
        places = torch.arange(length)[None, :] + start[:, None]
        config: Any = score.backbone.config
        before = config._attn_implementation
        config._attn_implementation = NAME
        install_cached_attention(self.running, self.bounds.context + self.bounds.chunk)
        try:
            with score.mean:
                hidden = score.backbone(
                    inputs_embeds=embedded[None], position_ids=places, use_cache=False
                ).last_hidden_state
                states = score.tap.take_own(slice(-1, None))
        finally:
            config._attn_implementation = before
            score.probe_values.end()
            if score.terms is not None:
                score.terms.end()
            new = self.running.end()
        return hidden[:, -1:], states, new

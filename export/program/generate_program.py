"""The eager module of the method ``generate``: some tokens behind a cache of those before them in,
the logits of the next one and what to append to the cache out."""

from typing import Any

import torch
from torch import nn

from .cached_attention import NAME, CachedPass, install_cached_attention
from .score_program import ScoreProgram
from .sensitive_linear import Columns

DEFAULT_CONTEXT = 2048
CHUNK = 64
"""Tokens of a prompt that are read in one pass, at most."""


class GenerateProgram(nn.Module):
    """``generate(tokens [1, T], start [1], columns [1, F], adapter [D, S], terms, cache)``.

    ``terms`` are those of ``score``, if it takes some.

    ``columns`` is what the method of this name makes of values, which a text needs once. ``cache``
    is, block by block, keys ``[KV, d, S]`` and values ``[KV, S, d]``, of which the first ``start``
    places are filled. Returns the logits float32 ``[1, V]`` behind the last token and each block's
    new keys and values, ``[KV, T, d]``.

    It shares every module with ``score``, hence every weight in the file.
    """

    def __init__(self, score: ScoreProgram, context: int, chunk: int = CHUNK) -> None:
        """For texts of at most ``context`` tokens, which the cache has places for, read in passes
        of at most ``chunk``."""
        super().__init__()
        self.score = score
        self.context, self.chunk = context, min(chunk, context)
        self.columns = Columns(score)

    def forward(
        self,
        tokens: torch.Tensor,
        start: torch.Tensor,
        columns: torch.Tensor,
        adapter: torch.Tensor,
        *more: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        score, length = self.score, tokens.shape[1]
        terms, cache = score.split(more)
        past = list(zip(cache[::2], cache[1::2], strict=True))
        running = CachedPass(length, start, past)
        install_cached_attention(running, self.context + self.chunk)
        score.probe_values.begin(scattered=columns)
        if score.terms is not None:
            score.terms.begin(terms)
        embedded = score.embedding(tokens.reshape(length))
        places = torch.arange(length)[None, :] + start[:, None]
        config: Any = score.backbone.config
        before = config._attn_implementation
        config._attn_implementation = NAME
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
        logits = score.logits(hidden[:, -1:], states, adapter)[0]
        return (logits, *(tensor for block in running.new for tensor in block))

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs inside the bounds whose sizes differ, so that tracing confuses no two of them."""
        tokens = torch.zeros(1, min(20, self.chunk), dtype=torch.int64)
        slots = min(37, self.context)
        cache = [
            torch.zeros(kv_heads, *shape)
            for kv_heads, width in self.score.cache_shapes
            for shape in ((width, slots), (slots, width))
        ]
        tuned = map(torch.zeros, (self.score.adapter_shape, *self.score.terms_shapes))
        return (tokens, torch.tensor([5]), torch.zeros(1, self.columns.size), *tuned, *cache)

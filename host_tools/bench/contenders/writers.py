"""Who writes on the same cores: a bundle's program, another of its sizes, transformers in float32,
llama.cpp where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.bundle.manifest import GENERATE
from seedtune.runtime.engines import Text
from seedtune.runtime.engines.cached_text import CachedText
from seedtune.runtime.engines.executorch_native import NativeProgram

from ..measuring.timing import Spent, Stopwatch

Answer = Callable[[list[int], int], tuple[Spent, Spent]]
"""Of a prompt and a number of tokens: what it took to read the one and to write the other."""


def written(open_text: Callable[[], Text]) -> Answer:
    """An engine's text, greedily."""

    def answer(prompt: list[int], count: int) -> tuple[Spent, Spent]:
        text = open_text()
        watch = Stopwatch()
        logits = text.read(prompt)
        read = watch.read()
        for _ in range(count):
            logits = text.read([int(logits.argmax())])
        return read, watch.read()

    return answer


def dense_text(program: NativeProgram, bundle: Bundle) -> Text:
    """A text of ``dense_program``, which has ``bundle``'s sizes and no columns."""
    assert bundle.generation is not None and bundle.adapter_shape is not None
    inputs = [np.zeros((1, 1), np.float32), np.zeros(bundle.adapter_shape, np.float32)]

    def run(
        given: list[NDArray[np.generic]], shapes: list[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        return program.run(GENERATE, given, *shapes)

    return CachedText(run, bundle.generation, bundle.vocab_size, inputs)


def transformers_float32(source: str, threads: int) -> Answer:
    """The model in transformers, with a static cache."""
    import torch
    from seedtune.export.model.load_model import load_causal_lm
    from transformers import StaticCache

    torch.set_num_threads(threads)
    model = load_causal_lm(source).model

    @torch.no_grad()
    def answer(prompt: list[int], count: int) -> tuple[Spent, Spent]:
        cache = StaticCache(config=model.config, max_cache_len=len(prompt) + count)
        watch = Stopwatch()
        tokens = torch.tensor([prompt])
        found = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        read = watch.read()
        for _ in range(count):
            tokens = found.logits[:, -1:].argmax(-1)
            found = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return read, watch.read()

    return answer


def llama_cpp(gguf: str, threads: int) -> Answer | None:
    """llama.cpp on the GGUF file, by the package ``xllamacpp``, whose wheels hold it compiled; None
    where that is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    import xllamacpp

    asked: Any = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel = gguf, 2048, 1
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = threads
    asked.verbosity = -1
    server = xllamacpp.Server(asked)
    greedy = {"temperature": 0.0, "top_k": 1, "ignore_eos": True}

    def answer(prompt: list[int], count: int) -> tuple[Spent, Spent]:
        watch = Stopwatch()
        server.handle_completions({"prompt": prompt, "n_predict": 0, "cache_prompt": False})
        read = watch.read()
        # What was read is known now, but for the last token.
        found = server.handle_completions(
            {"prompt": prompt, "n_predict": count, "cache_prompt": True, **greedy}
        )
        written = watch.read()
        assert found["usage"]["completion_tokens"] == count, found["usage"]
        return read, written

    return answer

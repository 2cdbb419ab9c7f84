"""Who else writes on the same cores: transformers in float32, llama.cpp where it is installed."""

from __future__ import annotations

import importlib.util
import time
from typing import Any


def transformers_float32(source: str, threads: int) -> Any:
    """An ``Answer`` (see ``generate``) of the model in transformers, with a static cache."""
    import torch
    from seedtune.export.model.load_model import load_causal_lm
    from transformers import StaticCache

    torch.set_num_threads(threads)
    model = load_causal_lm(source).model

    @torch.no_grad()
    def answer(prompt: list[int], count: int) -> tuple[float, float]:
        cache = StaticCache(config=model.config, max_cache_len=len(prompt) + count)
        began = time.perf_counter()
        tokens = torch.tensor([prompt])
        found = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        read = time.perf_counter()
        for _ in range(count):
            tokens = found.logits[:, -1:].argmax(-1)
            found = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return read - began, time.perf_counter() - read

    return answer


def llama_cpp(gguf: str, threads: int) -> Any:
    """An ``Answer`` of llama.cpp on the GGUF file; None where its package is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    from llama_cpp import Llama

    model = Llama(gguf, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def answer(prompt: list[int], count: int) -> tuple[float, float]:
        model.reset()
        began = time.perf_counter()
        model.eval(prompt)
        read = time.perf_counter()
        for _ in range(count):
            model.eval([model.sample(temp=0.0)])
        return read - began, time.perf_counter() - read

    return answer

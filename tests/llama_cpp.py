"""llama.cpp, by its bindings: what it writes greedily of a GGUF file, next to transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


class LlamaCpp:
    """A GGUF file, opened by llama.cpp with one thread (it spins while others work)."""

    def __init__(self, file: Path) -> None:
        given = "install the extra 'test': llama.cpp's bindings (xllamacpp) are missing"
        xllamacpp = pytest.importorskip("xllamacpp", reason=given)
        asked = xllamacpp.CommonParams()
        asked.model.path = str(file)
        asked.n_parallel, asked.n_ctx, asked.n_gpu_layers = 1, 256, 0
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
        asked.warmup, asked.verbosity = False, -1
        # Its keys and values are float16 unless it is told otherwise.
        asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(asked)

    def written(self, text: str, tokens: Sequence[int], count: int) -> list[tuple[int, float]]:
        """Token and log-probability of each that it writes behind a text, up to an end.

        One by one, and no further than to a token that is only a part of a letter: the server
        tells nothing of such.

        Args:
            tokens: of the text, as transformers cuts it; llama.cpp cuts the text itself.
        """
        found: list[tuple[int, float]] = []
        for _ in range(count):
            prompt = [*tokens, *(token for token, _ in found)] if found else text
            answer = self._server.handle_completions(
                {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 1}
            )
            if not found:
                assert answer["usage"]["prompt_tokens"] == len(tokens), text
            told = answer["choices"][0]["logprobs"]
            if told is None:
                break
            found.append((told["content"][0]["id"], told["content"][0]["logprob"]))
        return found


def worst(
    model: Any, prompt: Sequence[int], written: list[tuple[int, float]]
) -> tuple[float, float]:
    """How far transformers' ``model`` is from what llama.cpp wrote: the most by which its own
    likeliest token was ahead of the one written, and the largest difference of a log-probability.

    The first is 0 where both write the same; what is next to it is a tie.
    """
    import torch

    tokens = [*prompt, *(token for token, _ in written)]
    with torch.no_grad():
        logp = model(torch.tensor([tokens])).logits.float().log_softmax(-1)[0]
    own = logp[len(prompt) - 1 : -1]
    chosen = own[torch.arange(len(written)), [token for token, _ in written]]
    ahead = float((own.max(-1).values - chosen).max())
    return ahead, float((chosen - torch.tensor([logp for _, logp in written])).abs().max())

"""A Llama of random weights as it would be downloaded: fp16, in files of a block each, with their
index. Memory and speed depend on nothing else, and no more than a block is held to write it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POOL = 16_777_213
"""Random numbers of which all weights are made, each matrix from another place: drawing 7 billion
would take minutes. A prime, so that no rows of a matrix repeat."""


def write_random_llama(folder: Path, config: dict[str, Any], tokenizer: Path | None = None) -> None:
    """Write a Hugging Face folder.

    Args:
        config: fields of ``LlamaConfig``.
        tokenizer: folder whose BPE tokenizer it gets, cut to the vocabulary of ``config``, if any.
    """
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    made = LlamaConfig(**config, architectures=["LlamaForCausalLM"], dtype="float16")
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    where = {}
    for number, tensors in enumerate(_files(made)):
        name = f"model-{number:05}-of-{made.num_hidden_layers + 1:05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        where.update(dict.fromkeys(tensors, name))
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    if tokenizer is None:
        return
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tokenizer / name).read_text(encoding="utf-8")
        if name == "tokenizer.json":
            text = json.dumps(cut_vocabulary(json.loads(text), made.vocab_size))
        (folder / name).write_text(text, encoding="utf-8")


def _files(config: Any) -> Iterator[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(POOL, generator=generator) * config.initializer_range).half()
    turned = 0

    def drawn(out: int, width: int) -> Any:
        nonlocal turned
        turned += 12_347
        count = out * width
        return pool.roll(turned).repeat(-(-count // POOL))[:count].view(out, width).clone()

    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    ends = {"model.embed_tokens.weight": drawn(config.vocab_size, hidden)}
    if not config.tie_word_embeddings:
        ends["lm_head.weight"] = drawn(config.vocab_size, hidden)
    yield {**ends, "model.norm.weight": torch.ones(hidden).half()}
    matrices = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for number in range(config.num_hidden_layers):
        block = {f"{name}.weight": drawn(*size) for name, size in matrices.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            block[f"{norm}.weight"] = torch.ones(hidden).half()
        yield {f"model.layers.{number}.{name}": tensor for name, tensor in block.items()}


def cut_vocabulary(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """The content of a BPE ``tokenizer.json`` without the tokens from ``size`` on."""
    model = tokenizer["model"]
    vocabulary = {token: number for token, number in model["vocab"].items() if number < size}

    def kept(merge: Any) -> bool:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        return {first, second, first + second} <= vocabulary.keys()

    merges = [merge for merge in model["merges"] if kept(merge)]
    added = [each for each in tokenizer["added_tokens"] if each["id"] < size]
    own = {**model, "vocab": vocabulary, "merges": merges}
    return {**tokenizer, "model": own, "added_tokens": added}

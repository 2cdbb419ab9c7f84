"""Tiny random models of every architecture in scope, and a mask for them."""

from typing import Any

import numpy as np
import torch
import transformers
from seedtune.runtime.bundle import Bounds

BOUNDS = Bounds(probes=3, rows=4, length=24, positions=12, candidates=5)
COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "intermediate_size": 96, "num_key_value_heads": 2}
ARCHITECTURES = {
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 8},  # shorter than the bound: the window must cut
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 32},
    "OPT": {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "Phi3": GROUPED,
    "Gemma3": {
        **GROUPED,
        "head_dim": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
LOWERED = ("Llama", "OPT", "Phi3", "Gemma3")
"""Those whose programs are lowered to ExecuTorch, which takes seconds a block: plain
blocks, blocks with biases, fused matrices, and windows with norms of queries and keys. The others
are made of the same."""


def tiny_to_lower(name: str) -> Any:
    """Of one block where a second is the same again: each takes some seconds to lower."""
    return tiny(name, blocks=2 if name in ("Llama", "Gemma3") else 1)


def tiny(name: str, blocks: int = 2) -> Any:
    torch.manual_seed(0)
    suffix = "TextConfig" if name == "Gemma3" else "Config"
    sizes = {**ARCHITECTURES[name], "num_hidden_layers": blocks}
    if "layer_types" in sizes:
        sizes["layer_types"] = (blocks * sizes["layer_types"])[:blocks]
    config = getattr(transformers, name + suffix)(**sizes)
    model = getattr(transformers, name + "ForCausalLM")(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 2:
            parameter.mul_(4.0)  # away from uniform probabilities
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms that matter
    return model


def some_mask(model: Any) -> dict[str, Any]:
    """A dozen entries for most linears of the decoder, none for every fifth."""
    generator = np.random.default_rng(0)
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    return {
        name: np.sort(
            generator.choice(module.weight.numel(), 12 if place % 5 else 0, replace=False)
        )
        for place, (name, module) in enumerate(linears)
    }

"""Blocks that low-rank terms can be learned in: how they must be built."""

from typing import Any

from .decoder_blocks import decoder_blocks

NAMES = ("gate_proj", "up_proj", "down_proj")
"""Matrices of their MLP."""
FROM = 1 / 3
"""Blocks below this part of the model are left out: of SmolLM2's 30 the lower ten add 5 % of LoRA's
gain and half as much time (``host_tools/bench/results/depth.md``)."""


def suited_blocks(model: Any) -> list[Any]:
    """A model's upper blocks; none where these are not built as the rule takes them: an MLP of silu
    and gate behind a root mean square norm, added to the residual stream."""
    blocks = decoder_blocks(model)
    upper = list(blocks[round(len(blocks) * FROM) :])
    plain = getattr(model.config, "hidden_act", None) in ("silu", "swish")
    return upper if plain and all(map(_fits, upper)) else []


def _fits(block: Any) -> bool:
    mlp = getattr(block, "mlp", None)
    norm = getattr(block, "post_attention_layernorm", None)
    if mlp is None or norm is None or getattr(block, "post_feedforward_layernorm", None):
        return False
    matrices = [getattr(mlp, name, None) for name in NAMES]
    biased = [getattr(getattr(each, "dense", each), "bias", None) is not None for each in matrices]
    return None not in matrices and not any(biased) and norm_eps(block) is not None


def norm_eps(block: Any) -> float | None:
    """Of the norm in front of a block's MLP, if that is a root mean square norm."""
    found: float | None = getattr(block.post_attention_layernorm, "variance_epsilon", None)
    return found

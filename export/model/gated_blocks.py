"""Blocks that low-rank terms can be learned in: how they must be built."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .decoder_blocks import decoder_blocks

NAMES = ("gate_proj", "up_proj", "down_proj")
"""Matrices of their MLP."""
FROM = 1 / 3
"""Blocks below this part of the model are left out: of SmolLM2's 30 the lower ten add 5 % of LoRA's
gain and half as much time (``host_tools/bench/results/depth.md``)."""
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu-tanh"}
"""By transformers' names."""


def suited_blocks(model: Any) -> list[Any]:
    """A model's upper blocks; none where these are not built as the rule takes them: an MLP with a
    gate behind a root mean square norm, and before another or none, added to the residual stream.
    """
    blocks = decoder_blocks(model)
    upper = list(blocks[round(len(blocks) * FROM) :])
    return upper if activation(model.config) and all(map(_fits, upper)) else []


def activation(config: Any) -> str | None:
    """Of the gate, as ``runtime.bundle.terms`` calls it; None of others."""
    named = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    return _ACTIVATIONS.get(str(named))


def mlp_norms(block: Any) -> list[Any]:
    """The norm in front of a block's MLP, and the one behind it where it has that."""
    behind = getattr(block, "post_feedforward_layernorm", None)
    if behind is None:
        return [getattr(block, "post_attention_layernorm", None)]
    return [getattr(block, "pre_feedforward_layernorm", None), behind]


def norm_eps(norm: Any) -> float:
    """Of a root mean square norm, under the one or the other of its names."""
    found: float = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return found


def norm_weight(norm: Any) -> npt.NDArray[np.float32]:
    """What it multiplies by, float32 ``[D]``, which some models keep less 1."""
    with torch.no_grad():
        found = norm(torch.ones(1, 1, *norm.weight.shape))[0, 0]
    return np.asarray(found.float().numpy() * np.float32((1 + norm_eps(norm)) ** 0.5))


def _fits(block: Any) -> bool:
    mlp = getattr(block, "mlp", None)
    matrices = [getattr(mlp, name, None) for name in NAMES]
    biased = [getattr(getattr(each, "dense", each), "bias", None) is not None for each in matrices]
    return None not in matrices and not any(biased) and all(map(_of_mean_square, mlp_norms(block)))


def _of_mean_square(norm: Any) -> bool:
    named = hasattr(norm, "variance_epsilon") or hasattr(norm, "eps")
    return named and not isinstance(norm, torch.nn.LayerNorm)

"""What a transformers model's blocks return, by its own account."""

from typing import Any

import torch


def block_states(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream ``[B, T, D]`` after 0, 1, ... all blocks."""
    body = model.base_model
    norm = body.norm if hasattr(body, "norm") else body.decoder.final_layer_norm
    last: list[torch.Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, given: last.append(given[0]))
    with torch.no_grad():
        outputs = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
    hook.remove()
    return [*outputs.hidden_states[:-1], *last]  # theirs ends with the normed state


def mean_so_far(state: torch.Tensor) -> torch.Tensor:
    """Of ``[B, T, D]`` at each token the mean over its row up to and with it."""
    return torch.stack([state[:, : end + 1].mean(dim=1) for end in range(state.shape[1])], dim=1)

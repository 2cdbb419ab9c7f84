"""Sensitivity profile: the empirical Fisher diagonal of every linear weight of the decoder.

Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity" (arXiv 2406.02913, section 3):
the sensitive weights are those with the largest mean squared gradient of the causal-LM loss over
generic text. The square is taken of the gradient of *each sequence's* loss and then averaged; the
square of a batch gradient would let gradients of different sequences cancel.

Memory is the model plus one accumulator: a hook fires as soon as the gradient of one weight is
complete, adds its square to the accumulator and drops it, so that no two gradients live at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError
from torch import nn

from ..model.decoder_linears import decoder_linears
from ..quiet import quiet
from .profile_file import LayerProfile, Profile

Progress = Callable[[int, int], None]
"""Called with (sequences done, sequences in total)."""


def compute_profile(
    model: Any,
    sequences: npt.NDArray[np.int64],
    *,
    model_name: str,
    model_sha256: str,
    text_sha256: str,
    device: str = "cpu",
    gradient_checkpointing: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """Profiles ``model`` (any transformers causal LM) over ``sequences`` int64 [n, length].

    The model is moved to ``device`` and keeps its dtype; the accumulator is float32 on the same
    device. The model is given back in evaluation mode with no parameter asking for a gradient.

    Raises:
        ModelError: a loss or a gradient is not finite, naming the sequence or the layer.
    """
    if sequences.ndim != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        raise ModelError(f"calibration sequences must be [n, length >= 2], not {sequences.shape}")
    model.to(device)
    linears = decoder_linears(model)
    model.eval()
    model.requires_grad_(False)
    fisher = {
        name: torch.zeros(linear.weight.shape, dtype=torch.float32, device=device)
        for name, linear in linears.items()
    }
    largest = {
        name: torch.zeros(linear.in_features, device=device) for name, linear in linears.items()
    }
    count = len(sequences)
    with (
        _squared_gradients(linears, fisher),
        _watched_inputs(linears, largest),
        _checkpointing(model, gradient_checkpointing),
    ):
        for index, sequence in enumerate(sequences):
            tokens = torch.from_numpy(np.ascontiguousarray(sequence))[None].to(device)
            loss = _causal_lm_loss(model, tokens)
            if not bool(torch.isfinite(loss)):
                raise ModelError(
                    f"{model_name}: the loss of calibration sequence {index} is not finite; "
                    "profile in float32"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            if progress is not None:
                progress(index + 1, count)
    layers = {}
    for name in linears:
        mean = fisher.pop(name).div_(count).cpu().numpy()
        if not np.isfinite(mean.max(initial=0.0)):
            raise ModelError(f"{model_name}: layer {name} has a gradient that is not finite")
        layers[name] = LayerProfile(mean, largest[name].cpu().numpy())
    settings = {
        "sequences": count,
        "length": int(sequences.shape[1]),
        "tokens": int(sequences.size),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "gradient_checkpointing": gradient_checkpointing,
    }
    return Profile(layers, model_name, model_sha256, text_sha256, settings)


def _causal_lm_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of one sequence [1, length], in float32."""
    logits = model(input_ids=tokens, use_cache=False).logits
    return nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])


@contextmanager
def _squared_gradients(
    linears: dict[str, nn.Linear], fisher: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Adds the square of each weight's gradient to ``fisher`` and drops the gradient at once."""
    handles = []
    for name, linear in linears.items():
        linear.weight.requires_grad_(True)

        def add_square(weight: torch.Tensor, total: torch.Tensor = fisher[name]) -> None:
            gradient = weight.grad
            assert gradient is not None
            weight.grad = None
            gradient = gradient.to(total.dtype)
            total.addcmul_(gradient, gradient)

        handles.append(linear.weight.register_post_accumulate_grad_hook(add_square))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for linear in linears.values():
            linear.weight.requires_grad_(False)
            linear.weight.grad = None


@contextmanager
def _watched_inputs(
    linears: dict[str, nn.Linear], largest: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Keeps the largest magnitude of every input column of each layer in ``largest``."""
    handles = []
    for name, linear in linears.items():

        def watch(
            _module: nn.Module, args: tuple[torch.Tensor, ...], to: torch.Tensor = largest[name]
        ) -> None:
            columns = args[0].detach().reshape(-1, args[0].shape[-1]).float()
            torch.maximum(to, columns.abs().amax(0), out=to)

        handles.append(linear.register_forward_pre_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Recomputes each block in the backward pass instead of keeping its activations.

    transformers checkpoints in training mode only, which would also switch dropout on.
    """
    if not wanted:
        yield
        return
    with quiet():  # transformers 5 announces another name for these two in version 6
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    try:
        yield
    finally:
        with quiet():
            model.gradient_checkpointing_disable()
        model.eval()

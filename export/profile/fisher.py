"""Sensitivity profile: the empirical Fisher diagonal of every linear weight of the decoder.

Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity" (arXiv 2406.02913, section 3):
the sensitive weights are those with the largest mean squared gradient of the causal-LM loss over
generic text. The square is taken of the gradient of *each sequence's* loss and then averaged; the
square of a batch gradient would let gradients of different sequences cancel.

One decoder block is worked on at a time (see ``block_by_block``), so that memory holds the weights,
one gradient and the squares of one block, and what every block reads of every sequence. It costs a
second forward pass, a third more time than if all activations were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError
from torch import nn

from ..model.decoder_linears import decoder_linears
from ..model.stored_weight import held
from .block_by_block import BlockByBlock
from .profile_file import LayerProfile, Profile, load_profile, writing_profile

Progress = Callable[[int, int], None]
"""Called with (blocks done, of all), forwards and then backwards."""


def compute_profile(
    model: Any,
    sequences: npt.NDArray[np.int64],
    *,
    model_name: str,
    model_sha256: str,
    text_sha256: str,
    file: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Profile:
    """Profiles ``model`` (any transformers causal LM) over ``sequences`` int64 [n, length].

    The model is moved to ``device`` and keeps its dtype; squares are added up in float32 on the
    same device. It is given back in evaluation mode with no parameter asking for a gradient.

    Args:
        file: where the profile is written matrix by matrix and read from, mapped; without one it
            stands in memory.

    Raises:
        ModelError: a loss or a gradient is not finite, naming the sequence or the layer; the model
            has no list of blocks; or the file cannot be written.
    """
    if sequences.ndim != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        raise ModelError(f"calibration sequences must be [n, length >= 2], not {sequences.shape}")
    model.to(device)
    model.eval().requires_grad_(False)
    linears = decoder_linears(model)
    settings = {
        "sequences": len(sequences),
        "length": int(sequences.shape[1]),
        "tokens": int(sequences.size),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    found = Profile({}, model_name, model_sha256, text_sha256, settings)
    layers = _layers(model, linears, sequences, model_name, device, progress)
    if file is not None:
        shapes = {name: (each.out_features, each.in_features) for name, each in linears.items()}
        with writing_profile(file, found, shapes) as write:
            for name, layer in layers:
                write(name, layer)
        return load_profile(file)
    made = dict(layers)
    found.layers.update((name, made[name]) for name in linears)
    return found


def _layers(
    model: Any,
    linears: dict[str, nn.Linear],
    sequences: npt.NDArray[np.int64],
    model_name: str,
    device: str,
    progress: Progress,
) -> Iterator[tuple[str, LayerProfile]]:
    """Every layer, those of the last block first."""
    count = len(sequences)
    text = [torch.from_numpy(np.ascontiguousarray(each))[None].to(device) for each in sequences]
    passing = BlockByBlock(model, text)
    total = 2 * len(passing.blocks)
    of_blocks = [
        {name: each for name, each in linears.items() if each in {*block.modules()}}
        for block in passing.blocks
    ]
    inside = {name for names in of_blocks for name in names}
    outside = {name: each for name, each in linears.items() if name not in inside}

    with torch.no_grad(), held(passing.ends):
        passing.begin()
    for number, own in enumerate(of_blocks):
        with torch.no_grad(), held(own.values()):
            passing.forward(number)
        progress(number + 1, total)  # outside: a caller's own work may need gradients

    def finished(squares: dict[str, torch.Tensor]) -> Iterator[tuple[str, LayerProfile]]:
        for name in list(squares):
            mean = squares.pop(name).div_(count).cpu().numpy()
            if not np.isfinite(mean.max(initial=0.0)):
                raise ModelError(f"{model_name}: layer {name} has a gradient that is not finite")
            yield name, LayerProfile(mean)

    with _squared_gradients(outside) as others:
        with held(passing.ends):
            for index, loss in enumerate(passing.losses()):
                if not bool(torch.isfinite(loss)):
                    raise ModelError(
                        f"{model_name}: the loss of calibration sequence {index} is not finite; "
                        "profile in float32"
                    )
        for number in reversed(range(len(of_blocks))):
            with _squared_gradients(of_blocks[number]) as squares:
                passing.backward(number)
            yield from finished(squares)
            progress(total - number, total)
        if outside:
            with held(passing.ends):
                passing.end()
    yield from finished(others)


@contextmanager
def _squared_gradients(linears: dict[str, nn.Linear]) -> Iterator[dict[str, torch.Tensor]]:
    """Adds the square of each weight's gradient to what it yields, and drops the gradient at once,
    so that no two live together."""
    handles = []
    with held(linears.values()):
        weights = {name: linear.weight for name, linear in linears.items()}
        squares = {
            name: torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            for name, weight in weights.items()
        }
        for name, weight in weights.items():
            weight.requires_grad_(True)

            def add_square(weight: torch.Tensor, total: torch.Tensor = squares[name]) -> None:
                gradient = weight.grad
                assert gradient is not None
                weight.grad = None
                gradient = gradient.to(total.dtype)
                total.addcmul_(gradient, gradient)

            handles.append(weight.register_post_accumulate_grad_hook(add_square))
        try:
            yield squares
        finally:
            for handle in handles:
                handle.remove()
            for weight in weights.values():
                weight.requires_grad_(False)
                weight.grad = None

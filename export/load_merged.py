"""Loads a checkpoint that ``seedtune merge`` wrote with a text head, into transformers.

A text head has no place in a checkpoint, so it lies beside it, in ``text_head.safetensors``: what
the output head reads, ``h``, is moved by a linear map of the token's own hidden states,
``h + adapter @ x``. ``x`` are the outputs of some decoder blocks, each divided by its root mean
square, side by side. Which blocks, the file says.

This file needs torch, transformers and safetensors alone; ``merge`` puts a copy beside the head::

    from load_merged import load_merged

    model = load_merged("merged")  # from there on as any other of transformers
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM

HEAD_FILE = "text_head.safetensors"
FORMAT = "seedtune-text-head-1"
"""One tensor, ``adapter``, float32 ``[D, blocks * H]``; metadata ``format``, ``blocks`` (JSON: how
many decoder blocks lie below each state) and ``sha256`` (see ``content_sha256``)."""


def load_merged(folder: str | Path, **options: Any) -> Any:
    """The model in ``folder`` with its text head.

    The head moves with ``to`` and counts in ``generate`` and in losses. ``save_pretrained`` writes
    the checkpoint without it: copy ``text_head.safetensors`` along.

    Args:
        options: of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ValueError: the head is missing, damaged, or another model's.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    add_text_head(model, Path(folder) / HEAD_FILE)
    return model


def add_text_head(model: Any, file: Path) -> None:
    """Let a causal language model of transformers read by the head in ``file``; see
    ``load_merged``."""
    adapter, below = _read(file)
    config = model.config
    width = model.get_output_embeddings().in_features
    count, hidden = config.num_hidden_layers, config.hidden_size
    if adapter.shape != (width, len(below) * hidden) or not all(1 <= n <= count for n in below):
        raise ValueError(
            f"{file}: is of another model: its adapter is {list(adapter.shape)} on blocks {below}, "
            f"the model has {count} blocks of width {hidden}, and its output head reads {width}"
        )
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    seen: dict[int, torch.Tensor] = {}

    def keep(number: int, output: Any) -> None:
        seen[number] = output[0] if isinstance(output, tuple) else output

    def move(base: nn.Module, arguments: Any, output: Any) -> Any:
        weight = model.text_head
        parts = [_unit(seen[number].to(weight.device, torch.float32)) for number in below]
        seen.clear()
        moved = nn.functional.linear(torch.cat(parts, dim=-1), weight.to(torch.float32))
        if isinstance(output, tuple):
            return (output[0] + moved.to(output[0]), *output[1:])
        output.last_hidden_state = output.last_hidden_state + moved.to(output.last_hidden_state)
        return output

    for number in below:
        blocks[number - 1].register_forward_hook(
            lambda block, arguments, output, number=number: keep(number, output)
        )
    model.register_buffer("text_head", adapter.to(model.device), persistent=False)
    model.base_model.register_forward_hook(move)


def content_sha256(adapter: torch.Tensor, blocks: list[int]) -> str:
    """SHA-256 (hex) of the blocks as JSON, the shape, and the bytes in row order."""
    digest = hashlib.sha256(json.dumps([blocks, list(adapter.shape)]).encode())
    digest.update(adapter.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path) -> tuple[torch.Tensor, list[int]]:
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{file}: is no text head that this version reads ({FORMAT})")
            adapter = opened.get_tensor("adapter")
        blocks = json.loads(metadata["blocks"])
        sha256 = metadata["sha256"]
    except FileNotFoundError as error:
        raise ValueError(
            f"{file}: is missing; a checkpoint without a text head loads with AutoModelForCausalLM"
        ) from error
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{file}: is damaged ({error}); merge the run again") from error
    if adapter.dtype is not torch.float32 or sha256 != content_sha256(adapter, blocks):
        raise ValueError(f"{file}: is damaged: its SHA-256 differs; merge the run again")
    return adapter, blocks


def _unit(hidden: torch.Tensor) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)

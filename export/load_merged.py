"""Loads what ``seedtune merge`` wrote of a run that learned more than a checkpoint can hold.

A text head or an answer head reads hidden states that no weight of the model reads, so it lies
beside the model, in a file of its own. ``x`` are the outputs of some decoder blocks, each divided
by its root mean square, side by side; which blocks, the file says.

- A text head moves what the output head reads, ``h``, to ``h + adapter @ x``.
- An answer head adds ``weights @ [x; 1]`` to ``share`` of the log-probabilities of the answers.

This file needs torch, transformers and safetensors alone; ``merge`` puts a copy beside the head::

    from load_merged import load_merged, load_answers

    model = load_merged("merged")  # with a text head; from there on as any other of transformers
    answers = load_answers("merged")  # with an answer head
    print(answers({"text": "a gripping, funny film"}))  # {"great": 0.97, "terrible": 0.03}
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "model_without_head"
"""Folder of the checkpoint: plain loaders find nothing in the folder above it, and no model that
was tuned without a word that it was not."""
HEAD_FILE = "text_head.safetensors"
ANSWERS_FILE = "answer_head.safetensors"
FORMAT = "seedtune-head-1"
"""One tensor, float32: ``adapter`` ``[D, blocks * H]`` or ``weights``
``[R, (blocks + mean_blocks) * H + 1]``; metadata ``format``, ``about`` (JSON: ``blocks`` counts the
decoder blocks below each state; an answer head has ``mean_blocks``, of means over the tokens so
far behind the first ``prefix``, ``share``, ``task`` and the ``labels`` of its answers, too) and
``sha256`` (see ``content_sha256``)."""


def load_merged(folder: str | Path, **options: Any) -> Any:
    """The model in ``folder`` with its text head.

    The head moves with ``to`` and counts in ``generate`` and in losses. ``save_pretrained`` writes
    the checkpoint without it: copy ``text_head.safetensors`` along.

    Args:
        options: of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ValueError: the head is missing, damaged, or another model's.
    """
    adapter, about = _read(Path(folder) / HEAD_FILE, "adapter")
    model: Any = AutoModelForCausalLM.from_pretrained(Path(folder) / MODEL, **options)
    _check_shape(Path(folder) / HEAD_FILE, model, adapter, about)
    seen = _tap(model, about["blocks"])

    def move(base: nn.Module, arguments: Any, output: Any) -> Any:
        weight = model.text_head
        parts = [_unit(seen[below].to(weight.device, torch.float32)) for below in about["blocks"]]
        seen.clear()
        moved = nn.functional.linear(torch.cat(parts, dim=-1), weight.to(torch.float32))
        if isinstance(output, tuple):
            return (output[0] + moved.to(output[0]), *output[1:])
        output.last_hidden_state = output.last_hidden_state + moved.to(output.last_hidden_state)
        return output

    model.register_buffer("text_head", adapter.to(model.device), persistent=False)
    model.base_model.register_forward_hook(move)
    return model


def load_answers(
    folder: str | Path, **options: Any
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """Answers rows of the run's task by the model in ``folder`` and its answer head.

    Args:
        options: of ``AutoModelForCausalLM.from_pretrained``.

    Returns:
        a function that takes a row (texts by field name) and returns the probability of each label
        or, of multiple choice, of each choice's number.

    Raises:
        ValueError: the answer head is missing, damaged, or another model's.
    """
    weights, about = _read(Path(folder) / ANSWERS_FILE, "weights")
    model = AutoModelForCausalLM.from_pretrained(Path(folder) / MODEL, **options)
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / MODEL)
    _check_shape(Path(folder) / ANSWERS_FILE, model, weights, about)
    seen, task = _tap(model, [*about["blocks"], *about["mean_blocks"]]), about["task"]

    def forward(tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities ``[T, V]`` and what the answer head reads, ``[T, D + 1]``."""
        with torch.no_grad():
            logits = model(torch.tensor([tokens], device=model.device)).logits[0]
        own = [seen[below][0].float() for below in about["blocks"]]
        ahead = about["prefix"]
        so_far = torch.arange(1, len(tokens) + 1 - ahead, device=model.device)[:, None]
        for below in about["mean_blocks"]:
            state = seen[below][0].float()
            own.append(torch.cat([state[:ahead], state[ahead:].cumsum(0) / so_far]))
        one = torch.ones(len(tokens), 1, device=model.device)
        states = torch.cat([*map(_unit, own), one], dim=-1).cpu()
        return logits.float().log_softmax(-1).cpu(), states

    def of_labels(row: Mapping[str, Any]) -> tuple[list[str], torch.Tensor]:
        words = task["verbalisers"]
        shown = "".join(
            task["template"].format_map(one) + words[_text(one[task["label_field"]])] + "\n"
            for one in task.get("demonstrations", ())
        )
        prompt = shown + task["template"].format_map(_texts(row))
        tokens = tokenizer(prompt)["input_ids"]
        labels = about["labels"]
        own = [tokenizer(prompt + words[label])["input_ids"] for label in labels]
        firsts = [ids[len(tokens)] for ids in own]
        logp, states = forward(tokens)
        return labels, about["share"] * logp[-1, firsts] + weights @ states[-1]

    def of_choices(row: Mapping[str, Any]) -> tuple[list[str], torch.Tensor]:
        prompt, scores = task["template"].format_map(_texts(row)), []
        for name in task["choice_fields"]:
            choice = _text(row[name])
            spaced = not prompt or prompt[-1].isspace() or choice[:1].isspace()
            joined = tokenizer(
                prompt + (choice if spaced else " " + choice), return_offsets_mapping=True
            )
            tokens, ends = joined["input_ids"], [end for _, end in joined["offset_mapping"]]
            start = max(1, next(n for n, end in enumerate(ends) if end > len(prompt)))
            logp, states = forward(tokens)
            at = torch.arange(start - 1, len(tokens) - 1)
            own = logp[at, torch.tensor(tokens[start:])].mean()
            scores.append(about["share"] * own + weights[0] @ states[at].mean(0))
        return [str(number) for number in range(len(scores))], torch.stack(scores)

    def answer(row: Mapping[str, Any]) -> dict[str, float]:
        labels, scores = (of_choices if "choice_fields" in task else of_labels)(row)
        return dict(zip(labels, scores.softmax(0).tolist(), strict=True))

    return answer


def content_sha256(tensor: torch.Tensor, about: str) -> str:
    """SHA-256 (hex) of ``about``, the shape, and the bytes in row order."""
    digest = hashlib.sha256(f"{about}{list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path, name: str) -> tuple[torch.Tensor, dict[str, Any]]:
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{file}: is no head that this version reads ({FORMAT})")
            tensor = opened.get_tensor(name)
        about, sha256 = metadata["about"], metadata["sha256"]
    except FileNotFoundError as error:
        raise ValueError(f"{file}: is missing; without it the model is as it was made") from error
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{file}: is damaged ({error}); merge the run again") from error
    if tensor.dtype is not torch.float32 or sha256 != content_sha256(tensor, about):
        raise ValueError(f"{file}: is damaged: its SHA-256 differs; merge the run again")
    return tensor, json.loads(about)


def _check_shape(file: Path, model: Any, tensor: torch.Tensor, about: dict[str, Any]) -> None:
    count, hidden = model.config.num_hidden_layers, model.config.hidden_size
    below = [*about["blocks"], *about.get("mean_blocks", ())]
    width = len(below) * hidden + ("mean_blocks" in about)
    rows = len(tensor) if "mean_blocks" in about else model.get_output_embeddings().in_features
    if tensor.shape != (rows, width) or not all(1 <= n <= count for n in below):
        raise ValueError(
            f"{file}: is of another model: it is {list(tensor.shape)} on blocks {below}, the model "
            f"has {count} blocks of width {hidden}"
        )


def _tap(model: Any, below: Sequence[int]) -> dict[int, torch.Tensor]:
    """What the blocks under ``below`` return, of the last forward pass."""
    count = model.config.num_hidden_layers
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    seen: dict[int, torch.Tensor] = {}

    def keep(number: int, output: Any) -> None:
        seen[number] = output[0] if isinstance(output, tuple) else output

    for number in below:
        blocks[number - 1].register_forward_hook(
            lambda block, arguments, output, number=number: keep(number, output)
        )
    return seen


def _unit(hidden: torch.Tensor) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> str:
    """As the program writes numbers and booleans into a prompt."""
    return str(value).lower() if isinstance(value, bool) else str(value)

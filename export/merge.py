"""The way back: tuned sensitive values written into a checkpoint as transformers, peft and GGUF
converters take it. A text head or an answer head has no place in one and lies beside it (see
``load_merged``)."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.errors import ModelError
from seedtune.runtime.files import check_output, place_folder, sync_tree, workplace

from . import load_merged
from .load_merged import ANSWERS_FILE, FORMAT, HEAD_FILE, MODEL, content_sha256
from .model.load_model import load_causal_lm
from .quiet import quiet

_ABOUT = """# A model and a head that seedtune tuned

`{file}` holds what was tuned: {what}. No checkpoint has a place for it. `{model}/` is the model
**without it**: opened by itself, as with `AutoModelForCausalLM`, or made into a GGUF file, it
answers as before tuning, or nearly so.

With torch, transformers and safetensors, from this folder:

```py
{example}
```
"""
_EXAMPLES = {
    HEAD_FILE: (
        "a linear map of hidden states in front of the output head",
        'from load_merged import load_merged\n\nmodel = load_merged(".")  # as any other',
    ),
    ANSWERS_FILE: (
        "a linear layer on hidden states that chooses between the answers of a task",
        "from load_merged import load_answers\n\n"
        'answers = load_answers(".")\nprint(answers({row}))  # probability of each answer',
    ),
}


@dataclass(frozen=True)
class AnswerHead:
    """An answer head of a run."""

    weights: NDArray[np.float32]
    """float32 ``[R, D + 1]``."""
    share: float
    """Weight of the model's own log-probability of an answer."""
    task: Mapping[str, Any]
    """The specification of the task that it answers."""
    labels: Sequence[str]
    """Its answers, in the order of the rows of ``weights`` stand."""


def merge_values(
    bundle: Bundle,
    values: NDArray[np.float32],
    source: str | Path,
    folder: str | Path,
    *,
    head: NDArray[np.float32] | AnswerHead | None = None,
) -> dict[str, Any]:
    """Write the model at ``source`` with ``values`` in their places as a Hugging Face folder.

    The checkpoint keeps the model's own number format, but for bfloat16, whose steps are larger
    than what tuning moves: that becomes float32.

    Args:
        values: float32 ``[K]``, of ``bundle``.
        folder: appears whole or not at all, where nothing stands or an empty folder.
        head: what was learned beside the values: of a text head the adapter, float32 ``[D, S]``,
            or an answer head. It goes into a file of its own, with its loader and the checkpoint in
            a folder ``load_merged.MODEL`` beside it.

    Returns:
        ``dtype`` of the checkpoint, how many values ``changed`` in it, and the ``head``'s file or
        None.

    Raises:
        ModelError: it is another model than the bundle was made from, or ``folder`` is taken or
            cannot be written.
    """
    folder = Path(folder)
    check_output(folder, bundle.path, *([Path(source)] if Path(source).exists() else ()))
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ModelError(f"{folder}: exists and is not empty; choose another output folder")
    loaded = load_causal_lm(source, dtype="auto")
    wanted = bundle.manifest["model"]
    if loaded.sha256 != wanted["sha256"]:
        raise ModelError(
            f"{source}: is another model than the one that {bundle.path} was made from "
            f"({wanted['name']}): its weights or its configuration differ"
        )
    model = loaded.model
    if model.dtype is torch.bfloat16:
        model = model.to(torch.float32)
    changed = 0
    modules = dict(model.named_modules())
    with torch.no_grad():
        for layer in bundle.layers:
            own = slice(layer.offset, layer.offset + layer.count)
            flat = modules[layer.name].weight.view(-1)
            places = torch.from_numpy(np.array(bundle.indices[own]))
            new = torch.from_numpy(np.array(values[own])).to(flat.dtype)
            changed += int((flat[places] != new).sum())
            flat[places] = new
    file = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with workplace(folder) as work, quiet():
            place = work / "merged"
            checkpoint = place if head is None else place / MODEL
            _save(loaded.tokenizer, model, checkpoint)
            if head is not None:
                file = folder / _write_head(place, head, bundle)
            sync_tree(place)
            place_folder(place, folder)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "changed": changed,
        "head": None if file is None else str(file),
    }


def _save(tokenizer: Any, model: Any, folder: Path) -> None:
    """OSError: it cannot be written, whichever exception of their own the libraries make of it."""
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error)) from error


def _write_head(folder: Path, head: NDArray[np.float32] | AnswerHead, bundle: Bundle) -> str:
    """Write a head with its loader and a word on both; returns its file's name."""
    if isinstance(head, AnswerHead):
        name, array, file = "weights", head.weights, ANSWERS_FILE
        about = {
            "blocks": bundle.hidden_blocks,
            "mean_blocks": bundle.mean_blocks,
            "share": head.share,
            "task": head.task,
            "labels": list(head.labels),
        }
    else:
        name, array, file = "adapter", head, HEAD_FILE
        about = {"blocks": bundle.hidden_blocks}
    tensor = torch.from_numpy(np.array(array, np.float32, order="C"))
    told = json.dumps(about)
    metadata = {"format": FORMAT, "about": told, "sha256": content_sha256(tensor, told)}
    save_file({name: tensor}, folder / file, metadata)
    shutil.copyfile(load_merged.__file__, folder / "load_merged.py")
    what, example = _EXAMPLES[file]
    text = _ABOUT.format(file=file, what=what, model=MODEL, example=example)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return file

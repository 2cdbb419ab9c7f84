"""The way back: tuned sensitive values written into a checkpoint of transformers, an adapter of
peft or a GGUF file. A text head or an answer head has no place in any of them; it lies beside a
checkpoint (see ``load_merged``), in whose matrices terms learned with a text head stand."""

import json
import os
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
from seedtune.runtime.files import check_output, place_folder, sync_file, sync_tree, workplace

from . import load_merged
from .gguf_file import GgufNames, write_tuned_gguf
from .gguf_model import write_gguf_model
from .load_merged import ANSWERS_FILE, FORMAT, HEAD_FILE, MODEL, content_sha256
from .model.adapter import is_adapter
from .model.decoder_blocks import decoder_blocks
from .model.gated_blocks import NAMES
from .model.load_model import load_causal_lm, located
from .peft_adapter import Moved, write_sparse_adapter
from .quiet import quiet

FORMS = ("hf", "peft", "gguf")
"""What can be written: a checkpoint, an adapter's folder, a GGUF file."""

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
class TextHead:
    """A text head of a run."""

    adapter: NDArray[np.float32]
    """float32 ``[D, S]``."""
    terms: Sequence[tuple[int, int, NDArray[np.float32], NDArray[np.float32]]] = ()
    """What was learned below it: block, number of the matrix in ``gated_blocks.NAMES``, and the
    factors of its change."""


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
    """Its answers, in the order in which the rows of ``weights`` stand."""
    prefix: int = 0
    """Tokens in front of every row that no mean of states is of."""


def merge_values(
    bundle: Bundle,
    values: NDArray[np.float32],
    source: str | Path,
    output: str | Path,
    *,
    to: str = "hf",
    head: TextHead | AnswerHead | None = None,
) -> dict[str, Any]:
    """Write ``values`` in their places of the model at ``source``.

    A checkpoint keeps the model's own number format, but for bfloat16, whose steps are larger than
    what tuning moves: that becomes float32. An adapter is the difference between that checkpoint
    and ``source``. GGUF is a copy of ``source`` if that is one (see ``gguf_file``), else as the
    checkpoint.

    Args:
        values: float32 ``[K]``, of ``bundle``.
        output: folder or, of GGUF, file; appears whole or not at all, where nothing stands or an
            empty folder.
        to: one of ``FORMS``.
        head: what was learned beside the values. It goes into a file of its own, with its loader
            and the checkpoint in a folder ``load_merged.MODEL`` beside it; terms go into that.

    Returns:
        ``dtype`` of the checkpoint, how many values ``changed`` in it, and the ``head``'s file or
        None.

    Raises:
        ModelError: it is another model than the bundle was made from, ``output`` is taken or cannot
            be written, or what was learned has no place in that form.
    """
    output = Path(output)
    _check_form(to, head)
    path, origin = located(source)
    check_output(output, bundle.path, path)
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise ModelError(f"{output}: exists and is not empty; choose another output")
    if to == "peft" and is_adapter(path):
        raise ModelError(
            f"{source}: is an adapter itself, and peft loads no adapter on another; write --to hf"
        )
    loaded = load_causal_lm(path if origin is None else str(origin), dtype="auto")
    wanted = bundle.manifest["model"]
    if loaded.sha256 != wanted["sha256"]:
        raise ModelError(
            f"{source}: is another model than the one that {bundle.path} was made from "
            f"({wanted['name']}): its weights or its configuration differ"
        )
    if loaded.model.dtype is torch.bfloat16:
        loaded.model = loaded.model.to(torch.float32)
    moved = _moved(bundle, values, loaded.model)
    if to != "hf" and not moved:
        raise ModelError(f"{output}: nothing to write: the values are those of {source}")
    file = None
    model, tokenizer = loaded.model, loaded.tokenizer
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with workplace(output) as work, quiet():
            place = work / "merged"
            if to == "hf":
                _move(model, moved)
                if isinstance(head, TextHead):
                    _add_terms(model, head)
                _save(model, tokenizer, place if head is None else place / MODEL)
                file = None if head is None else _write_head(place, head, bundle)
            elif to == "peft":
                base = str(path.resolve()) if origin is None else origin.repository
                write_sparse_adapter(place, moved, base)
            elif path.suffix.lower() == ".gguf":
                write_tuned_gguf(place, path, moved, GgufNames(model.config))
            else:
                _move(model, moved)
                write_gguf_model(place, loaded, work / "tokenizer")
            if place.is_dir():
                sync_tree(place)
                place_folder(place, output)
            else:
                sync_file(place)
                os.rename(place, output)
    except OSError as error:
        raise ModelError(f"{output}: cannot be written: {error.strerror or error}") from error
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "changed": sum(len(one.places) for one in moved.values()),
        "head": None if file is None else str(output / file),
    }


def _check_form(to: str, head: object) -> None:
    """Refuse what cannot be written before the model is loaded."""
    if to not in FORMS:
        raise ModelError(f"--to {to}: unknown form; known: {', '.join(FORMS)}")
    if to != "hf" and head is not None:
        what = "an answer head" if isinstance(head, AnswerHead) else "a text head"
        raise ModelError(
            f"--to {to}: the run learned {what}, which reads hidden states that no weight of the "
            "model reads; --to hf writes it beside the checkpoint, with a loader"
        )


def _moved(bundle: Bundle, values: NDArray[np.float32], model: Any) -> dict[str, Moved]:
    """Where ``values``, in the format of ``model``, differ from it; by module name."""
    modules, found = dict(model.named_modules()), {}
    for layer in bundle.layers:
        own = slice(layer.offset, layer.offset + layer.count)
        places, weight = np.array(bundle.indices[own]), modules[layer.name].weight
        before = weight.detach().view(-1)[torch.from_numpy(places)]
        after = torch.from_numpy(np.array(values[own])).to(before.dtype)
        differ = (before != after).numpy()
        if differ.any():
            one, other = before.float().numpy()[differ], after.float().numpy()[differ]
            found[layer.name] = Moved(layer.shape, places[differ], one, other)
    return found


def _move(model: Any, moved: dict[str, Moved]) -> None:
    """Put what was moved in its places of ``model``."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, one in moved.items():
            flat = modules[name].weight.view(-1)
            flat[torch.from_numpy(one.places)] = torch.from_numpy(one.after).to(flat.dtype)


def _add_terms(model: Any, head: TextHead) -> None:
    """Put what terms change into the matrices that they stand beside."""
    blocks: Any = decoder_blocks(model)
    with torch.no_grad():
        for block, slot, term, directions in head.terms:
            weight = getattr(blocks[block].mlp, NAMES[slot]).weight
            weight += torch.from_numpy(term @ directions).to(weight.dtype)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """OSError: it cannot be written, whichever exception of their own the libraries make of it."""
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error)) from error


def _write_head(folder: Path, head: TextHead | AnswerHead, bundle: Bundle) -> str:
    """Write a head with its loader and a word on both; returns its file's name."""
    if isinstance(head, AnswerHead):
        name, array, file = "weights", head.weights, ANSWERS_FILE
        about = {
            "blocks": bundle.hidden_blocks,
            "mean_blocks": bundle.mean_blocks,
            "share": head.share,
            "task": head.task,
            "labels": list(head.labels),
            "prefix": head.prefix,
        }
    else:
        name, array, file = "adapter", head.adapter, HEAD_FILE
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

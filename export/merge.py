"""The way back: tuned sensitive values written into a checkpoint as transformers, peft and GGUF
converters take it. A text head has no place in one and lies beside it (see ``load_merged``)."""

import json
import shutil
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
from .load_merged import FORMAT, HEAD_FILE, content_sha256
from .model.load_model import load_causal_lm
from .program.block_tap import tapped_blocks
from .quiet import quiet


def merge_values(
    bundle: Bundle,
    values: NDArray[np.float32],
    source: str | Path,
    folder: str | Path,
    *,
    adapter: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Write the model at ``source`` with ``values`` in their places as a Hugging Face folder.

    The checkpoint keeps the model's own number format, but for bfloat16, whose steps are larger
    than what tuning moves: that becomes float32.

    Args:
        values: float32 ``[K]``, of ``bundle``.
        folder: appears whole or not at all, where nothing stands or an empty folder.
        adapter: of a text head, float32 ``[D, S]``; goes into a file of its own, with its loader.

    Returns:
        ``dtype`` of the checkpoint, how many values ``changed`` in it, and the ``text_head``'s file
        or None.

    Raises:
        ModelError: it is another model than the bundle was made from, or ``folder`` is taken or
            cannot be written.
        SeedtuneError: ``folder`` is in the bundle or in the model's folder.
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
            f"({wanted['name']}): its weights differ"
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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with workplace(folder) as work, quiet():
            _save(loaded.tokenizer, model, work / "model")
            if adapter is not None:
                blocks, _ = tapped_blocks(model.config.num_hidden_layers)
                _write_head(work / "model", adapter, blocks)
            sync_tree(work / "model")
            place_folder(work / "model", folder)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "changed": changed,
        "text_head": None if adapter is None else str(folder / HEAD_FILE),
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


def _write_head(folder: Path, adapter: NDArray[np.float32], blocks: list[int]) -> None:
    tensor = torch.from_numpy(np.ascontiguousarray(adapter))
    metadata = {
        "format": FORMAT,
        "blocks": json.dumps(blocks),
        "sha256": content_sha256(tensor, blocks),
    }
    save_file({"adapter": tensor}, folder / HEAD_FILE, metadata)
    shutil.copyfile(load_merged.__file__, folder / "load_merged.py")

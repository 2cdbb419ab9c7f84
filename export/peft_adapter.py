"""Adapters as peft writes them: ``adapter_config.json`` and one safetensors file.

What sparse values change is a SHiRA adapter (a sparse matrix on top of a linear weight), low-rank
terms are a LoRA adapter. ``PeftModel.from_pretrained`` loads both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from seedtune.runtime.errors import ModelError

_ABOUT = """---
base_model: {base}
library_name: peft
---

# An adapter that seedtune tuned

{kind} on `{base}`. Load the base model in float32: bfloat16 rounds away what was tuned.

```py
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({load}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, ".")  # this folder
```
"""

Terms = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""By name of a linear module A, float32 ``[r, in]``, and B, float32 ``[out, r]``."""


@dataclass(frozen=True)
class Moved:
    """Entries of a linear weight that tuning moved."""

    shape: tuple[int, int]
    """``(out, in)`` of the weight."""
    places: NDArray[np.int64]
    """int64 ``[n]``, rising: places in the flattened weight."""
    before: NDArray[np.float32]
    """float32 ``[n]``: what the base checkpoint holds there."""
    after: NDArray[np.float32]
    """float32 ``[n]``: what is to stand there."""


def write_sparse_adapter(folder: Path, moved: Mapping[str, Moved], base: str) -> None:
    """Write what was moved as a SHiRA adapter; base and adapter add up to the merged weights.

    SHiRA has as many entries in a matrix as a LoRA of rank r has, with one r for all: r is the
    least that has room, and what is left over are zeros.

    Args:
        folder: is made.
        moved: by module name; not empty.
        base: the model it belongs on: a folder, a hub id or a GGUF file.

    Raises:
        ModelError: so many entries moved that a matrix has no room for them.
        OSError: it cannot be written.
    """
    from peft import ShiraConfig

    rank = max(-(-len(one.places) // sum(one.shape)) for one in moved.values())
    tensors = {}
    for name, one in moved.items():
        count, entries = rank * sum(one.shape), one.shape[0] * one.shape[1]
        if count > entries:
            raise ModelError(
                f"{folder}: a SHiRA adapter of rank {rank} has no room in layer {name}: too many "
                "values moved; write the whole model with --to hf"
            )
        free = np.ones(entries, bool)
        free[one.places] = False
        left = np.flatnonzero(free)[: count - len(one.places)]
        places = np.concatenate([one.places, left])
        delta = np.concatenate([one.after - one.before, np.zeros(len(left), np.float32)])
        rows, columns = np.divmod(places, one.shape[1])
        key = f"base_model.model.{name}"
        tensors[f"{key}.shira_weight"] = torch.from_numpy(delta)
        tensors[f"{key}.shira_indices"] = torch.from_numpy(
            np.stack([rows, columns]).astype(np.int32)
        )
    config = ShiraConfig(r=rank, target_modules=sorted(moved), **_common(base))
    _write(folder, tensors, config, base, "A SHiRA adapter: sparse changes of linear weights,")


def write_lora_adapter(
    folder: Path,
    terms: Terms,
    base: str,
) -> None:
    """Write low-rank terms as a LoRA adapter: each module's output gets ``B (A x)`` more.

    Args:
        folder: is made.
        terms: not empty; their ranks may differ.
        base: as for ``write_sparse_adapter``.

    Raises:
        OSError: it cannot be written.
    """
    from peft import LoraConfig

    tensors, rank = {}, 0
    for name, (inner, outer) in one_rank(terms).items():
        rank = len(inner)
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.from_numpy(inner)
        tensors[f"{key}.lora_B.weight"] = torch.from_numpy(outer)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # so that the scale, alpha / r, is 1
        lora_dropout=0.0,
        target_modules=sorted(terms),
        **_common(base),
    )
    _write(folder, tensors, config, base, "A LoRA adapter: low-rank changes of linear weights,")


def one_rank(terms: Terms) -> Terms:
    """The same terms as arrays of their own, all of the largest rank: what is missing are zeros."""
    rank = max(len(inner) for inner, _ in terms.values())
    found = {}
    for name, (inner, outer) in terms.items():
        more = rank - len(inner)
        wide = np.pad(inner, ((0, more), (0, 0))), np.pad(outer, ((0, 0), (0, more)))
        found[name] = np.ascontiguousarray(wide[0]), np.ascontiguousarray(wide[1])
    return found


def _common(base: str) -> dict[str, Any]:
    return {"base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True}


def _write(
    folder: Path, tensors: dict[str, torch.Tensor], config: Any, base: str, kind: str
) -> None:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    path = Path(base)
    gguf = path.suffix.lower() == ".gguf"
    load = f'"{path.parent}", gguf_file="{path.name}"' if gguf else f'"{base}"'
    text = _ABOUT.format(kind=kind, base=base, load=load)
    (folder / "README.md").write_text(text, encoding="utf-8")

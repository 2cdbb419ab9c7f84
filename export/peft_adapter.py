"""An adapter as peft writes it: ``adapter_config.json`` and one safetensors file.

What sparse values change is a SHiRA adapter: a sparse matrix on top of a linear weight.
``PeftModel.from_pretrained`` loads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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

A SHiRA adapter: sparse changes of linear weights, on `{base}`. Load the base model in float32:
bfloat16 rounds away what was tuned.

```py
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({load}, dtype=torch.float32)
model = PeftModel.from_pretrained(base, ".")  # this folder
```
"""


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
    config = ShiraConfig(
        r=rank,
        target_modules=sorted(moved),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(str(folder))
    path = Path(base)
    gguf = path.suffix.lower() == ".gguf"
    load = f'"{path.parent}", gguf_file="{path.name}"' if gguf else f'"{base}"'
    (folder / "README.md").write_text(_ABOUT.format(base=base, load=load), encoding="utf-8")

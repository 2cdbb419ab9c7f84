"""One stage of ``bench shapes`` in a process of its own: its peak memory ends with it.

``python -m seedtune.host_tools.bench.processes.shapes export FOLDER BUNDLE`` exports random weights
of the configuration in FOLDER, ``... tune BUNDLE ROWS LENGTH`` makes two steps; each prints one
JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from seedtune.runtime.engines.system_memory import peak_resident_bytes


def main(stage: str, *arguments: str) -> dict[str, Any]:
    """``peak_rss_bytes``, and ``seconds`` of the export or ``step_seconds`` of the second step."""
    if stage == "export":
        found = _export(*map(Path, arguments))
    else:
        bundle, rows, length = arguments
        found = _tune(Path(bundle), int(rows), int(length))
    return {**found, "peak_rss_bytes": peak_resident_bytes()}


def _export(folder: Path, bundle: Path) -> dict[str, Any]:
    import numpy as np
    import torch
    from seedtune.export.export import export_model
    from seedtune.export.model.load_model import LoadedModel, load_causal_lm
    from seedtune.export.model.shape import read_shape
    from seedtune.export.recipe import Recipe
    from transformers import AutoConfig, AutoModelForCausalLM

    from ...data.fetch import fetch
    from ..programs.llama_shapes import FRACTION, random_mask

    shape = read_shape(folder)
    tokens = load_causal_lm(fetch("smollm2-135m"))  # its tokenizer: any that fits the vocabulary
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    loaded = LoadedModel(model, tokens.tokenizer, tokens.tokenizer_json, folder.name, "0" * 64)
    del tokens, model
    began = time.monotonic()
    export_model(
        loaded,
        bundle,
        mask=random_mask(shape.linears),
        calibrate=lambda tokenizer: (np.zeros((0, 0), np.int64), ""),
        fraction=FRACTION,
        recipe=Recipe(rounding="nearest"),
    )
    return {"seconds": time.monotonic() - began}


def _tune(bundle: Path, rows: int, length: int) -> dict[str, Any]:
    from seedtune.runtime.bundle import open_bundle

    from ..contenders.steps import spsa_step

    step = spsa_step(open_bundle(bundle), rows, length)
    step()
    began = time.monotonic()
    step()
    return {"step_seconds": time.monotonic() - began}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

"""``seedtune bench shapes``: measured peaks of larger models against what ``estimate`` says.

The models have the published shapes and random weights, for memory and speed depend on nothing
else; the mask is random too, in few columns, as the default mask puts it. Each stage runs in a
process of its own. A model whose export is estimated at more than this machine has free stops at
the estimate.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.export.model.shape import read_shape
from seedtune.runtime.bundle import DEFAULT_BOUNDS
from seedtune.runtime.engines.system_memory import available_bytes, peak_resident_bytes
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import default_cache

from ..data.fetch import fetch
from ..estimate.estimate import estimate_bundle, estimate_export, estimate_tuning, measure_speed
from .measuring.results_files import RESULTS, say, write_figures

ROWS, LENGTH = 4, 64
FRACTION, COLUMN_SHARE = 0.001, 0.004  # the latter as estimates take it


@dataclass(frozen=True)
class Shape:
    """Fields of a Llama configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 128_256, True),
    "llama-2-7b": Shape(4096, 11_008, 32, 32, 32, 32_000, False),
}


def bench_shapes(*, results: Path = RESULTS) -> dict[str, Any]:
    """Estimate and measurement of each model, also written to ``shapes.json`` in ``results``.

    Returns:
        By model: ``parameters``; for ``export`` and ``tuning`` the ``estimated_bytes`` and, where
        it ran, ``peak_rss_bytes`` and ``estimate_over_peak``; ``program_bytes``,
        ``export_seconds``, ``step_seconds`` (estimated).
    """
    return write_figures("shapes", {name: _figures(name) for name in SHAPES}, results)


def _figures(name: str) -> dict[str, Any]:
    folder = default_cache() / "bench" / f"shape-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **asdict(SHAPES[name])}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shape = read_shape(folder)
    options: dict[str, Any] = {"fraction": FRACTION}
    export = estimate_export(shape, rounding="nearest", speed=measure_speed(), **options)
    tuning = estimate_tuning(
        shape,
        DEFAULT_BOUNDS,
        rows=ROWS,
        length=LENGTH,
        estimator="two-point",
        speed=measure_speed(),
        **options,
    )
    found: dict[str, Any] = {
        "parameters": shape.parameters,
        "bundle_bytes_estimated": estimate_bundle(shape, **options).bytes,
        "export": {"estimated_bytes": export.bytes, "components": export.components},
        "tuning": {"estimated_bytes": tuning.bytes, "components": tuning.components},
        "step_seconds_estimated": tuning.seconds,
    }
    free = available_bytes()
    if free is not None and export.bytes > free:
        say(f"{name}: export needs {export.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        return found
    bundle = folder / "bundle"
    say(f"{name}: exporting")
    made = _child("export", str(folder), str(bundle))
    _compare(found["export"], made["peak_rss_bytes"])
    found["export_seconds"] = made["seconds"]
    found["program_bytes"] = (bundle / "program.pte").stat().st_size
    say(f"{name}: tuning")
    tuned = _child("tune", str(bundle))
    _compare(found["tuning"], tuned["peak_rss_bytes"])
    found["step_seconds"] = tuned["step_seconds"]
    return found


def _compare(stage: dict[str, Any], peak: int) -> None:
    stage["peak_rss_bytes"] = peak
    stage["estimate_over_peak"] = stage["estimated_bytes"] / peak


def _child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "seedtune.host_tools.bench.shapes", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SeedtuneError(f"bench shapes: {arguments[0]} ended with code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _export(folder: Path, bundle: Path) -> dict[str, Any]:
    import time

    import torch
    from seedtune.export.export import export_model
    from seedtune.export.model.load_model import LoadedModel, load_causal_lm
    from seedtune.export.recipe import Recipe
    from transformers import AutoConfig, AutoModelForCausalLM

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


def random_mask(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.int64]]:
    """``FRACTION`` of the weights, in ``COLUMN_SHARE`` of the columns of the value projections and
    of some feed-forward outputs, where the default mask finds most.

    Args:
        sizes: (out, in) of each matrix.
    """
    generator = np.random.default_rng(0)
    chosen = {
        name: size
        for number, (name, size) in enumerate(sizes.items())
        if name.endswith("v_proj") or (name.endswith("down_proj") and number % 4 == 0)
    }
    weights, room = (
        sum(rows * columns for rows, columns in each.values()) for each in (sizes, chosen)
    )
    share = weights / room
    mask = {}
    for name, (rows, columns) in chosen.items():
        kept = generator.choice(columns, max(1, round(columns * COLUMN_SHARE * share)), False)
        flat = (np.arange(rows)[:, None] * columns + np.sort(kept)).reshape(-1)
        count = round(rows * columns * FRACTION * share)
        mask[name] = np.sort(generator.choice(flat, min(count, len(flat)), False))
    return mask


def _tune(bundle_path: Path) -> dict[str, Any]:
    import time

    from seedtune.runtime.bundle import open_bundle

    from .contenders.steps import spsa_step

    bundle = open_bundle(bundle_path)
    step = spsa_step(bundle, ROWS, LENGTH)
    step()
    began = time.monotonic()
    step()
    return {"step_seconds": time.monotonic() - began}


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[2:]]
    result = {"export": _export, "tune": _tune}[sys.argv[1]](*paths)  # type: ignore[operator]
    print(json.dumps({**result, "peak_rss_bytes": peak_resident_bytes()}))

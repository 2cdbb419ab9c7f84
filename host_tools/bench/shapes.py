"""``seedtune bench shapes``: measured peaks of larger models against what ``estimate`` says.

The models have the published shapes and random weights, for memory and speed depend on nothing
else; the mask is random too, in few columns, as the default mask puts it. Each stage runs in a
process of its own. A model whose export is estimated at more than this machine has free stops at
the estimate.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seedtune.export.model.shape import read_shape
from seedtune.runtime.bundle import DEFAULT_BOUNDS
from seedtune.runtime.engines.system_memory import available_bytes
from seedtune.runtime.files import default_cache

from ..estimate.device_stages import estimate_tuning
from ..estimate.host_stages import estimate_export
from ..estimate.sizes import estimate_bundle, measure_speed
from .measuring.process import run_module
from .measuring.results_files import RESULTS, say, write_figures
from .processes import shapes as process
from .programs.llama_shapes import FRACTION, SHAPES

ROWS, LENGTH = 4, 64
"""Of a step's batch."""


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
    made = run_module(process.__name__, "export", folder, bundle)
    _compare(found["export"], made["peak_rss_bytes"])
    found["export_seconds"] = made["seconds"]
    found["program_bytes"] = (bundle / "program.pte").stat().st_size
    say(f"{name}: tuning")
    tuned = run_module(process.__name__, "tune", bundle, ROWS, LENGTH)
    _compare(found["tuning"], tuned["peak_rss_bytes"])
    found["step_seconds"] = tuned["step_seconds"]
    return found


def _compare(stage: dict[str, Any], peak: int) -> None:
    stage["peak_rss_bytes"] = peak
    stage["estimate_over_peak"] = stage["estimated_bytes"] / peak

"""``seedtune bench estimate``: what ``seedtune estimate`` says of five models against what their
commands then take.

Two are real, three have random weights of a published or plain shape, for memory depends on nothing
else. Each command is a process of its own, run as a user runs it, and tells its own peak. A stage
for which this machine lacks the memory is left out.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from seedtune.export.model.shape import read_shape
from seedtune.runtime.bundle import DEFAULT_BOUNDS, open_bundle
from seedtune.runtime.engines.system_memory import available_bytes
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import default_cache

from ..data.calibration import read_documents
from ..data.fetch import fetch
from ..estimate.device_stages import estimate_tuning
from ..estimate.host_stages import estimate_export, estimate_profile
from ..estimate.sizes import Estimate
from .measuring.process import call_function, run_module
from .measuring.results_files import RESULTS, read_figures, say, write_figures
from .programs.llama_shapes import FRACTION, SHAPES, Shape, few_columns
from .programs.random_llama import write_random_llama

ROWS, WORDS, STEPS, HELD_OUT = 4, 40, 4, 8
"""Rows of a batch, words of a row, steps of a run, and rows held out of it."""
COMMANDS = "seedtune.host_tools.cli"
"""Each is run as a user runs it."""
TASK = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"0": " bad", "1": " good"},
}


@dataclass(frozen=True)
class Measured:
    """A model to measure: one that ``fetch`` knows, or a shape.

    ``sequences`` is what it is profiled on: few take as much memory as many.
    """

    shape: Shape | None = None
    sequences: int = 32
    rounding: str = "gptq"
    mask: list[str] = field(default_factory=list)
    to: tuple[str, ...] = ("executorch",)


TOKENIZER = 49_152
"""Entries of SmolLM2's, which the models with random weights have."""
_RANDOM = ["--mask", f"{few_columns.__module__}:{few_columns.__name__}"]
MODELS = {
    "smollm2-135m": Measured(),
    "gemma3-270m": Measured(),
    "48-layers": Measured(Shape(640, 1728, 48, 10, 5, TOKENIZER, False), 2, "nearest", _RANDOM),
    "llama-3.2-1b": Measured(SHAPES["llama-3.2-1b"], 2, "nearest", _RANDOM),
    "llama-2-7b": Measured(SHAPES["llama-2-7b"], 2, "nearest", _RANDOM, ("torch",)),
}


def bench_estimate(
    *, models: tuple[str, ...] | None = None, results: Path = RESULTS
) -> dict[str, Any]:
    """Estimate and measurement of each model, also written to ``estimate.json`` in ``results``.
    Models that are not asked for keep their figures.

    Returns:
        By model and stage (``profile``, ``export``, ``tuning readout``, ``tuning two-point``):
        ``estimated_bytes``, ``peak_rss_bytes``, ``estimate_over_peak``, ``components``.
    """
    for name in models or ():
        if name not in MODELS:
            raise SeedtuneError(f"bench estimate: no model {name!r}; known: {', '.join(MODELS)}")
    known = read_figures("estimate", results) or {}
    figures = {name: known[name] for name in MODELS if name in known}
    for name in models or tuple(MODELS):
        figures[name] = _figures(name, MODELS[name])
        found = write_figures("estimate", figures, results)
    return found


def show_estimate(figures: dict[str, Any]) -> RenderableType:
    """For people: one line a model and stage."""
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "stage", "estimate, MB", "measured, MB", "estimate over it"):
        table.add_column(heading, justify="left" if heading in ("model", "stage") else "right")
    for name in MODELS:
        for stage, found in figures.get(name, {}).items():
            if not isinstance(found, dict):
                continue
            said, peak = (
                found.get(size, math.nan) for size in ("estimated_bytes", "peak_rss_bytes")
            )
            ratio = found.get("estimate_over_peak", math.nan)
            table.add_row(name, stage, f"{said / 1e6:,.0f}", f"{peak / 1e6:,.0f}", f"{ratio:.2f}")
    return table


def _figures(name: str, asked: Measured) -> dict[str, Any]:
    folder = default_cache() / "bench" / f"estimate-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    source = _real(name) if asked.shape is None else _random(name, asked.shape, folder)
    shape = read_shape(source)
    options: dict[str, Any] = {"fraction": FRACTION}
    profile, bundle = folder / "profile.safetensors", folder / "bundle"
    found: dict[str, Any] = {"parameters": shape.parameters, "rounding": asked.rounding}

    def stage(what: str, said: Estimate, *command: object) -> bool:
        found[what] = {"estimated_bytes": said.bytes, "components": said.components}
        free = available_bytes()
        if free is not None and said.bytes > free:
            say(f"{name}: {what} needs {said.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            return False
        say(f"{name}: {what}")
        peak = run_module(COMMANDS, *command, "--json")["peak_rss_bytes"]
        found[what] |= {"peak_rss_bytes": peak, "estimate_over_peak": said.bytes / peak}
        return True

    read = {"sequences": asked.sequences, "length": 128}
    made = stage(
        "profile", estimate_profile(shape, **read, speed=1.0), "profile", source, profile,
        "--sequences", asked.sequences,
    ) and stage(
        "export",
        estimate_export(shape, rounding=asked.rounding, to=asked.to, speed=1.0, **options),
        "export", source, bundle, "--profile", profile, "--rounding", asked.rounding,
        "--to", ",".join(asked.to), *asked.mask,
    )  # fmt: skip
    if not made:
        return found
    profile.unlink(missing_ok=True)  # 26 GB of 7 billion weights
    found["bundle_bytes"] = sum(
        part["bytes"] for part in open_bundle(bundle).manifest["parts"].values()
    )
    if "executorch" not in asked.to:  # whose engine's memory is estimated
        return found
    train, held_out = _rows(folder, 0, ROWS * STEPS), _rows(folder, ROWS * STEPS, HELD_OUT)
    for estimator in ("readout", "two-point"):
        run = folder / f"run-{estimator}"
        shutil.rmtree(run, ignore_errors=True)
        said = estimate_tuning(
            shape, DEFAULT_BOUNDS, rows=ROWS, length=_length(bundle, train),
            examples=ROWS * STEPS + HELD_OUT, estimator=estimator, speed=1.0, **options,
        )  # fmt: skip
        rates = ["--lr", "1e-5", "--eps", "0.01"] if estimator == "two-point" else []
        stage(f"tuning {estimator}", said, "tune", bundle, run, "--task", _task(folder), "--train",
              train, "--data", held_out, "--batch-size", ROWS, "--steps", STEPS, "--on-long",
              "truncate", "--estimator", estimator, *rates)  # fmt: skip
    return found


def _real(name: str) -> Path:
    """The folder that a fetched GGUF file is dequantised to, which is a peak of its own."""
    from seedtune.export.model.load_model import _dequantised_folder

    folder: Path = call_function(_dequantised_folder, fetch(name))
    return folder


def _random(name: str, shape: Shape, folder: Path) -> Path:
    """A model folder of that shape, with random weights and SmolLM2's tokenizer."""
    model = folder / "model"
    if (model / "made").is_file():
        return model
    config = {
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **asdict(shape),
    }
    say(f"{name}: making weights")
    write_random_llama(model, config, _real("smollm2-135m"))
    (model / "made").touch()
    return model


def _task(folder: Path) -> Path:
    file = folder / "task.json"
    file.write_text(json.dumps(TASK), encoding="utf-8")
    return file


def _rows(folder: Path, first: int, count: int) -> Path:
    """A file of rows of ``WORDS`` words of Wikipedia, other ones from another ``first``."""
    words = " ".join(read_documents(fetch("wikipedia-passages"))[:100]).split()
    file = folder / f"rows-{first}.jsonl"
    with file.open("w", encoding="utf-8") as sink:
        for number in range(first, first + count):
            text = " ".join(words[number * WORDS : (number + 1) * WORDS])
            sink.write(json.dumps({"text": text, "label": number % 2}) + "\n")
    return file


def _length(bundle: Path, rows: Path) -> int:
    """Mean of the tokens of a row in this bundle's vocabulary."""
    tokenizer = open_bundle(bundle).tokenizer()
    texts = [json.loads(line)["text"] for line in rows.read_text(encoding="utf-8").splitlines()]
    return round(sum(len(tokenizer.encode(text + " It was").ids) for text in texts) / len(texts))

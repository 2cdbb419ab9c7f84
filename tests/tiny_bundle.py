"""A bundle of a few kilobytes with a real tokenizer and a program that is only bytes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import (
    Bounds,
    Bundle,
    Contents,
    Layer,
    Program,
    open_bundle,
    write_bundle,
)
from seedtune.runtime.bundle.manifest import MANIFEST, manifest_digest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOUNDS = Bounds(probes=2, rows=8, length=32, positions=48, candidates=4)
LAYERS = (Layer("a", (4, 6), 0, 5), Layer("empty", (3, 3), 5, 0), Layer("b", (2, 8), 5, 7))
TASK = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"1": " great", "0": " terrible"},
}
_TEXTS = [
    "the film was great and the plot was good It was great",
    "the film was terrible and the plot was bad It was terrible",
    "a dull plot so I left because the actors were bad",
] * 3


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE as GPT-2 and SmolLM2 use it: words carry their leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        min_frequency=2,
        special_tokens=["<pad>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


PROGRAM = Program("executorch", ("program.pte",), "int8 per token", {"score": {}})


def bundle_parts(program: Any = None, **changes: Any) -> dict[str, Any]:
    """Arguments of ``Contents`` for a sound bundle, some of them changed.

    Args:
        program: its only program's bytes or file.
    """
    rng = np.random.default_rng(0)
    indices = [np.sort(rng.choice(o * i, n, replace=False)) for o, i, n in ((4, 6, 5), (2, 8, 7))]
    filler = bytes(rng.integers(0, 256, 500, dtype=np.uint8))
    parts: dict[str, Any] = {
        "programs": [PROGRAM],
        "files": {"program.pte": filler if program is None else program},
        "values": rng.standard_normal(12).astype(np.float16),
        "indices": np.concatenate(indices).astype(np.int64),
        "layers": LAYERS,
        "tokenizer_json": tiny_tokenizer().to_str().encode(),
        "model": {
            "name": "tiny",
            "architecture": "LlamaForCausalLM",
            "sha256": "a" * 64,
            "vocab_size": 384,
            "hidden_size": 8,
            "layers": 2,
        },
        "mask": {"method": "fisher", "fraction": 0.001, "profile_sha256": None},
        "quantisation": {"weights": "int4"},
        "bounds": BOUNDS,
        "pad_id": 0,
        "task": TASK,
    }
    return parts | changes


def write_tiny_bundle(folder: Path, **changes: Any) -> Bundle:
    """A bundle on disk."""
    return write_bundle(folder, Contents(**bundle_parts(**changes)))


def with_task(bundle: Bundle, folder: Path, task: Mapping[str, Any]) -> Bundle:
    """The bundle again in ``folder``, with another task."""
    shutil.copytree(bundle.path, folder)
    manifest = {**bundle.manifest, "task": dict(task)}
    manifest["sha256"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return open_bundle(folder)

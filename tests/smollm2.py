"""SmolLM2-135M exported: whole, as the quickstart does it, and its first blocks with all that a
program can do."""

from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from seedtune.host_tools.data.fetch import fetch
from seedtune.host_tools.prepare import prepare
from seedtune.host_tools.quickstart import MODEL, WRITTEN
from seedtune.runtime.bundle import Bundle, open_bundle

BLOCKS = 2
"""Of 30. What tiny models have not is here: real weights, a real tokenizer, and a head of 49 152
tokens; the methods that write and that read a prefix are lowered in seconds a block."""


def whole() -> Bundle:
    """The quickstart's: it scores, and writes nothing."""
    return prepare(str(fetch(MODEL)), context=WRITTEN).bundle


def first_blocks(exports: Path) -> Bundle:
    """Exported into the folder that a session's workers share, by whichever of them comes first."""
    folder = exports / "smollm2"
    with FileLock(folder.with_suffix(".lock")):
        return open_bundle(folder) if folder.exists() else _export(folder)


def _export(folder: Path) -> Bundle:
    from architectures import some_mask
    from seedtune.export.export import export_model
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.host_tools.data.calibration import load_calibration

    loaded = load_causal_lm(fetch(MODEL), "stored")
    del loaded.model.model.layers[BLOCKS:]
    loaded.model.config.num_hidden_layers = BLOCKS
    text = load_calibration(loaded.tokenizer, sequences=8, held_out=0)
    return export_model(
        replace(loaded, name=f"{MODEL}, {BLOCKS} blocks"),
        folder,
        mask=some_mask(loaded.model),
        calibrate=lambda _: (text.profile, text.sha256),
    )

"""``seedtune profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import check_output

from .export import check_file
from .inputs import model_source
from .options import Base, Json, Source
from .output import Output


def profile(
    model: Source,
    file: Annotated[Path, typer.Argument(metavar="PROFILE", help="safetensors file to write.")],
    text: Annotated[
        Path | None,
        typer.Option(help="Calibration text, .txt or .jsonl. Default: Wikipedia passages."),
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Number of sequences.")] = 32,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each sequence.")] = 128,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="float32|bfloat16",
            help="To compute in. Weights stay as they are stored, one block at a time apart.",
        ),
    ] = "float32",
    base: Base = None,
    json: Json = False,
) -> None:
    """Rank a model's weights by their mean squared gradient over generic text.

    'export' does so itself; a profile of its own is for other text, or made on a GPU.
    """
    from seedtune.runtime.engines.memory import peak_resident_bytes

    output = Output(json)
    if dtype not in ("float32", "bfloat16"):
        raise SeedtuneError(f"dtype {dtype!r} is unknown; use float32 or bfloat16")
    check_file(file)
    check_output(file, Path(model))
    with output.waiting("loading the libraries"):
        import torch
        from seedtune.export.model.load_model import load_causal_lm
        from seedtune.export.profile.fisher import compute_profile

        from ..data.calibration import load_calibration

    source = model_source(model, output)
    base = base and model_source(base, output)
    with output.waiting("loading the model"):  # a GGUF file is dequantised at first
        loaded = load_causal_lm(
            source, "stored" if dtype == "float32" else torch.bfloat16, base=base
        )
    calibration = load_calibration(
        loaded.tokenizer, sequences=sequences, length=length, held_out=0, text=text
    )
    with output.counting("profiling blocks") as progress:
        found = compute_profile(
            loaded.model,
            calibration.profile,
            model_name=loaded.name,
            model_sha256=loaded.sha256,
            text_sha256=calibration.sha256,
            device=device,
            file=file,
            progress=progress,
        )
    output.result(
        {
            "profile": str(file),
            "model": found.model_name,
            "model_sha256": found.model_sha256,
            "text_sha256": found.text_sha256,
            "weights": found.entries,
            "peak_rss_bytes": peak_resident_bytes(),
        }
    )

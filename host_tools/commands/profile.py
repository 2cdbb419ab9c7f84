"""``seedtune profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from seedtune.export.profile import DEFAULT_FRACTION, DEFAULT_MASK
from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import check_output

from .early_checks import check_file
from .inputs import model_source
from .options import Fraction, Json, MaskName, Source
from .output import Output

if TYPE_CHECKING:
    from seedtune.export.profile.masks import Mask
    from seedtune.export.profile.profile_file import Profile

Verbose = Annotated[bool, typer.Option("--verbose", help="Of a profile: report every matrix.")]


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
    mask: MaskName = DEFAULT_MASK,
    fraction: Fraction = DEFAULT_FRACTION,
    picture: Annotated[Path | None, typer.Option(help="PNG file of the report.")] = None,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Rank a model's weights by their mean squared gradient over generic text."""
    output = Output(json)
    if dtype not in ("float32", "bfloat16"):
        raise SeedtuneError(f"dtype {dtype!r} is unknown; use float32 or bfloat16")
    check_file(file)
    check_output(file, Path(model))
    with output.waiting("loading the libraries"):
        import torch
        from seedtune.export.model.load_model import load_causal_lm
        from seedtune.export.profile.fisher import compute_profile
        from seedtune.export.profile.masks import build_mask, mask_method

        from ..data.calibration import load_calibration

    mask_method(mask)  # an unknown one is refused before minutes of work
    source = model_source(model, output)
    with output.waiting("loading the model"):  # a GGUF file is dequantised at first
        loaded = load_causal_lm(source, "stored" if dtype == "float32" else torch.bfloat16)
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
    chosen = build_mask(found, fraction, mask_method(mask, model=loaded.model))
    show_profile(found, chosen, picture, verbose, output, {"profile": str(file)})


def show_profile(
    profile: Profile,
    mask: Mask,
    picture: Path | None,
    verbose: bool,
    output: Output,
    about: dict[str, Any] | None = None,
) -> None:
    """Report what a mask takes from a profile; ``about`` comes first in the JSON object."""
    from seedtune.runtime.engines.system_memory import peak_resident_bytes

    from ..reports.profile_report import draw, report, summary, tables

    found = report(profile, mask)
    peak = peak_resident_bytes()  # before matplotlib is loaded
    if picture is not None:
        draw(profile, found, picture)
        about = {**(about or {}), "picture": str(picture)}
    data = {
        **(about or {}),
        "model": profile.model_name,
        "model_sha256": profile.model_sha256,
        "text_sha256": profile.text_sha256,
        **summary(found),
        "peak_rss_bytes": peak,
    }
    output.result(data, tables(found, verbose, peak))

"""``seedtune export``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from seedtune.export.profile import DEFAULT_FRACTION, DEFAULT_MASK
from seedtune.export.quantise import DEFAULT_ROUNDING

from .early_checks import check_file, check_target, check_task
from .inputs import ChosenTask, model_source
from .options import Base, Fraction, Json, MaskName, Rounding, Source
from .output import Output


def export(
    model: Source,
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder to write, or *.seedtune file.")
    ],
    profile: Annotated[
        Path | None,
        typer.Option(
            help="What 'profile' wrote. Default: made from the calibration text, kept in the cache."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Task to store: a named one or a JSON file."),
    ] = None,
    mask: MaskName = DEFAULT_MASK,
    fraction: Fraction = DEFAULT_FRACTION,
    rounding: Rounding = DEFAULT_ROUNDING,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Calibration text, .txt or .jsonl; as much is used as in the profile. "
            "Default: Wikipedia passages."
        ),
    ] = None,
    probes: Annotated[
        int | None, typer.Option(min=1, help="Bound: value rows in one pass. Default: 2.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Bound: rows of full length in one pass; more if shorter. Not the batch. "
            "Default: 2.",
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Bound: tokens of a row. Default: 128.")
    ] = None,
    positions: Annotated[
        int | None,
        typer.Option(min=1, help="Bound: scored positions in one pass. Default: the length."),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Bound: tokens scored a position. Default: 16.")
    ] = None,
    prefix: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Bound: tokens in front of every row, such as demonstrations, that are read once "
            "for all rows; for executorch by programs that write. Default: 1024.",
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT,...",
            help="Programs of the bundle, which share weights, values and tokenizer: executorch, "
            "onnx (needs the extra onnx-export), torch.",
        ),
    ] = "executorch",
    context: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens of a text that the bundle can write, prompt and answer; at most the "
            "model's positions. 0: it only scores.",
        ),
    ] = 2048,
    terms: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=64,
            help="Rank of the terms of the upper blocks that a device may learn by; 0: "
            "none. Default: 8, 0 with --context 0 or for a task of choosing.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: one a core.")
    ] = None,
    base: Base = None,
    json: Json = False,
) -> None:
    """Quantise a model to int4, lower it for one or more engines and write a bundle."""
    from seedtune.runtime.bundle import DEFAULT_BOUNDS
    from seedtune.runtime.engines.memory import peak_resident_bytes

    output = Output(json)
    given = {
        "probes": probes,
        "rows": rows,
        "length": length,
        "positions": positions or length,
        "candidates": candidates,
        "prefix": prefix,
    }
    bounds = replace(
        DEFAULT_BOUNDS, **{name: size for name, size in given.items() if size is not None}
    )
    spec = None if task is None else ChosenTask.of(task, None).spec
    (check_file if bundle.suffix == ".seedtune" else check_target)(bundle)
    with output.waiting("loading the libraries"):
        import torch
        from seedtune.export.export import export_model, with_prefix
        from seedtune.export.lower.programs import check_formats
        from seedtune.export.model.load_model import load_causal_lm
        from seedtune.export.profile.masks import mask_method
        from seedtune.export.profile.profile_file import profile_settings
        from seedtune.export.quantise import check_rounding

        from ..data.calibration import load_calibration

    if threads is not None:
        torch.set_num_threads(threads)
    mask_method(mask)  # what is unknown is refused before minutes of work
    check_rounding(rounding)
    formats = check_formats([name.strip() for name in to.split(",")])
    amount = {"sequences": 32, "length": 128} if profile is None else profile_settings(profile)
    source = model_source(model, output)
    base = base and model_source(base, output)
    with output.waiting("loading the model"):  # a GGUF file is dequantised at first
        loaded = load_causal_lm(source, "stored", base=base)
    if spec is not None:
        check_task(spec, loaded, with_prefix(bounds, formats, context, loaded.model.config))
    read = {name: amount[name] for name in ("sequences", "length")}

    def calibrate(tokenizer: Any) -> tuple[Any, str]:
        found = load_calibration(tokenizer, **read, held_out=0, text=text)
        return found.profile, found.sha256

    began = time.monotonic()
    with output.stages() as stages, _written_to(bundle) as folder:
        written = export_model(
            loaded,
            folder,
            calibrate=calibrate,
            profile=profile,
            mask=mask,
            fraction=fraction,
            rounding=rounding,
            bounds=bounds,
            context=context,
            terms=terms,
            task=spec,
            to=formats,
            progress=stages,
        )
    output.result(
        {
            "bundle": str(bundle),
            "sha256": written.sha256,
            "programs": [program.format for program in written.programs],
            "values": written.K,
            "bytes": sum(part["bytes"] for part in written.manifest["parts"].values()),
            "seconds": time.monotonic() - began,
            "peak_rss_bytes": peak_resident_bytes(),
        }
    )


@contextmanager
def _written_to(bundle: Path) -> Iterator[Path]:
    """The folder to write: ``bundle``, or what is packed into it at the end if that is a file."""
    from seedtune.runtime.bundle import pack_bundle
    from seedtune.runtime.files import workplace

    if bundle.suffix != ".seedtune":
        yield bundle
        return
    with workplace(bundle) as work:
        folder = work / "bundle"
        yield folder
        pack_bundle(folder, bundle)

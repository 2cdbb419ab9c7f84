"""``seedtune export``.

What it would otherwise find wrong only at its end is refused before minutes of work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from seedtune.export.profile import DEFAULT_FRACTION, DEFAULT_MASK
from seedtune.export.quantise import DEFAULT_ROUNDING
from seedtune.runtime.errors import SeedtuneError

from .inputs import ChosenTask, model_source
from .options import Base, Fraction, Json, MaskName, Rounding, Source
from .output import Output

if TYPE_CHECKING:
    from seedtune.export.model.load_model import LoadedModel
    from seedtune.runtime.bundle import Bounds


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
    (check_file if bundle.suffix == ".seedtune" else _check_target)(bundle)
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
        _check_task(spec, loaded, with_prefix(bounds, formats, context, loaded.model.config))
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


def check_file(file: Path) -> None:
    """See that ``file`` can be written.

    Raises:
        SeedtuneError: its folder is missing or not writable, or it is a folder itself.
    """
    _check_parent(file)
    if file.is_dir():
        raise SeedtuneError(f"{file}: is a folder; choose another name for the file")


def _check_target(folder: Path) -> None:
    """See that a bundle can be written to ``folder``, as ``write_bundle`` will.

    Raises:
        SeedtuneError: its parent is missing or not writable, or it holds something else.
    """
    from seedtune.runtime.bundle.write import check_bundle_folder

    _check_parent(folder)
    check_bundle_folder(folder)


def _check_task(spec: Mapping[str, Any], model: LoadedModel, bounds: Bounds) -> None:
    """See that the bundle of ``model`` can have the task ``spec``.

    Raises:
        DataError: the specification is wrong, or its prompt leaves no room for any text.
    """
    from seedtune.runtime.tasks import task_from_spec
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.tokenizer_json.decode())
    tokenizer.no_truncation()  # as the bundle's will be
    tokenizer.no_padding()
    task = task_from_spec(
        spec, tokenizer, bounds, 0, on_long="truncate", chat=model.chat, ends=model.end_ids
    )
    task.encode(task.shortest_row(), "the shortest text")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise SeedtuneError(f"{path.parent}: no such folder; create it first")
    if not os.access(path.parent, os.W_OK):
        raise SeedtuneError(f"{path.parent}: not writable; choose another folder")

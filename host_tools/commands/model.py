"""Commands on the way to a bundle: fetch, profile, export, estimate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from seedtune.runtime.errors import DownloadError, SeedtuneError

from .early import check_bundle_folder, check_file, check_task
from .inputs import ChosenTask, model_source
from .options import EngineName, Fraction, Json, Mask, Source
from .output import Output

if TYPE_CHECKING:
    from seedtune.export.profile.profile_file import Profile

    from ..estimate.estimate import Estimate

QUICKSTART_RESOURCES = (
    "smollm2-135m",
    "wikipedia-passages",
    "movie-reviews",
    "sst2",
    "sms-spam",
)


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Default: what the quickstart needs."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Fetch all that is known.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Only list what is known.")] = False,
    json: Json = False,
) -> None:
    """Download models and data sets once; everything else then runs offline."""
    from ..data.fetch import RESOURCES
    from ..data.fetch import fetch as fetch_one

    output = Output(json)
    if listing:
        table = Table("name", "what", "licence", box=None)
        for resource in RESOURCES.values():
            table.add_row(resource.name, resource.about, resource.licence)
        output.result({name: item.about for name, item in RESOURCES.items()}, table)
        return
    wanted = list(RESOURCES) if everything else names or list(QUICKSTART_RESOURCES)
    for name in wanted:
        if name not in RESOURCES:  # before anything is downloaded
            raise DownloadError(f"unknown resource {name!r}; known: {', '.join(RESOURCES)}")
    found = {}
    for name in wanted:
        with output.counting(f"fetching {name}", size=True) as progress:
            found[name] = str(fetch_one(name, progress))
    output.result(found)


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
        str, typer.Option(metavar="float32|bfloat16", help="Of the model's weights.")
    ] = "float32",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    mask: Mask = "compact",
    fraction: Fraction = 0.001,
    picture: Annotated[Path | None, typer.Option(help="PNG file of the report.")] = None,
    json: Json = False,
) -> None:
    """Rank a model's weights by their mean squared gradient over generic text."""
    output = Output(json)
    if dtype not in ("float32", "bfloat16"):
        raise SeedtuneError(f"dtype {dtype!r} is unknown; use float32 or bfloat16")
    check_file(file)
    import torch
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.export.profile.fisher import compute_profile
    from seedtune.export.profile.masks import mask_method
    from seedtune.export.profile.profile_file import save_profile

    from ..data.calibration import load_calibration

    mask_method(mask)  # an unknown one is refused before minutes of work
    source = model_source(model, output)
    loaded = load_causal_lm(source, getattr(torch, dtype))
    calibration = load_calibration(
        loaded.tokenizer, sequences=sequences, length=length, held_out=0, text=text
    )
    with output.counting("profiling sequences") as progress:
        found = compute_profile(
            loaded.model,
            calibration.profile,
            model_name=loaded.name,
            model_sha256=loaded.sha256,
            text_sha256=calibration.sha256,
            device=device,
            gradient_checkpointing=gradient_checkpointing,
            progress=progress,
        )
    save_profile(found, file)
    show_profile(found, mask, fraction, picture, output, {"profile": str(file)})


def show_profile(
    profile: Profile,
    mask: str,
    fraction: float,
    picture: Path | None,
    output: Output,
    about: dict[str, Any] | None = None,
) -> None:
    """Report what a mask takes from a profile; ``about`` comes first in the JSON object."""
    from seedtune.export.profile.masks import build_mask, mask_method

    from ..reports.profile_report import draw, report, summary, tables

    found = report(profile, build_mask(profile, fraction, mask_method(mask)))
    if picture is not None:
        draw(profile, found, picture)
        about = {**(about or {}), "picture": str(picture)}
    data = {
        **(about or {}),
        "model": profile.model_name,
        "model_sha256": profile.model_sha256,
        "text_sha256": profile.text_sha256,
        **summary(found),
    }
    output.result(data, tables(found))


def export(
    model: Source,
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="What 'profile' wrote.")],
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder to write, or *.seedtune file.")
    ],
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Task to store: a named one or a JSON file."),
    ] = None,
    mask: Mask = "compact",
    fraction: Fraction = 0.001,
    outliers: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="Share of most active columns kept out of int8."),
    ] = 0.0,
    rounding: Annotated[
        str,
        typer.Option(
            metavar="gptq|nearest",
            help="How weights become int4: with calibration text, or each by itself.",
        ),
    ] = "gptq",
    text: Annotated[
        Path | None,
        typer.Option(
            help="Calibration text of gptq, .txt or .jsonl; as much is used as in the profile. "
            "Default: Wikipedia passages."
        ),
    ] = None,
    directions: Annotated[
        int,
        typer.Option(
            min=0, help="To learn for the task's prompt, for the estimator gauss-newton; 0: none."
        ),
    ] = 0,
    probes: Annotated[
        int | None, typer.Option(min=1, help="Bound: value rows in one pass. Default: 2.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
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
    json: Json = False,
) -> None:
    """Quantise a model to int4, lower it to ExecuTorch and write a bundle."""
    import hashlib
    import shutil
    import tempfile
    import time
    from dataclasses import replace

    from seedtune.runtime.bundle import DEFAULT_BOUNDS, pack_bundle
    from tokenizers import Tokenizer

    output = Output(json)
    spec = None if task is None else ChosenTask.of(task, None).spec
    given = {
        "probes": probes,
        "rows": rows,
        "length": length,
        "positions": positions or length,
        "candidates": candidates,
    }
    bounds = replace(
        DEFAULT_BOUNDS, **{name: size for name, size in given.items() if size is not None}
    )
    archive = bundle.suffix == ".seedtune"
    (check_file if archive else check_bundle_folder)(bundle)
    from seedtune.export.profile.masks import build_mask, mask_method
    from seedtune.export.profile.profile_file import load_profile

    method = mask_method(mask)  # an unknown one is refused before minutes of work
    profiled = load_profile(profile)
    chosen = build_mask(profiled, fraction, method)
    from seedtune.export.export import Recipe, export_bundle
    from seedtune.export.model.load_model import load_causal_lm

    from ..data.calibration import load_calibration

    source = model_source(model, output)
    loaded = load_causal_lm(source)
    if spec is not None:
        pad_id = loaded.tokenizer.pad_token_id or 0
        tokenizer = Tokenizer.from_str(loaded.tokenizer_json.decode())
        tokenizer.no_truncation()  # as the bundle's will be
        tokenizer.no_padding()
        check_task(spec, tokenizer, bounds, pad_id, directions=directions, text=text)
    calibration = None
    if rounding == "gptq":
        read = {name: profiled.settings[name] for name in ("sequences", "length")}
        calibration = load_calibration(loaded.tokenizer, **read, held_out=0, text=text).profile
    # A single file is packed from a folder that nobody else can have the name of.
    work = tempfile.mkdtemp(prefix=f".{bundle.stem}.", dir=bundle.parent) if archive else None
    folder = Path(work) / "bundle" if work else bundle
    began = time.monotonic()
    try:
        with output.stages() as progress:
            written = export_bundle(
                loaded,
                chosen,
                folder,
                bounds=bounds,
                recipe=Recipe(outlier_share=outliers, rounding=rounding),
                activity={name: layer.input_absmax for name, layer in profiled.layers.items()},
                calibration=calibration,
                mask_description={
                    "method": mask,
                    "fraction": fraction,
                    "profile_sha256": hashlib.sha256(profile.read_bytes()).hexdigest(),
                },
                profiled_sha256=profiled.model_sha256,
                task=spec,
                progress=progress,
            )
            del loaded  # before the model is loaded again, in float32
            if spec is not None and directions:
                from ..prepare.task_bundle import write_task_bundle

                try:
                    written = write_task_bundle(
                        source,
                        written,
                        spec,
                        folder,
                        directions=directions,
                        text=text,
                        progress=progress,
                    )
                except SeedtuneError:
                    if archive:
                        pack_bundle(folder, bundle)
                    output.note(
                        f"{bundle}: written with its task, but without directions; "
                        "'seedtune directions' adds them"
                    )
                    raise
        if archive:
            pack_bundle(folder, bundle)
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)
    output.result(
        {
            "bundle": str(bundle),
            "sha256": written.sha256,
            "values": written.K,
            "bytes": sum(part["bytes"] for part in written.manifest["parts"].values()),
            "seconds": time.monotonic() - began,
        }
    )


def estimate(
    model: Source,
    probes: Annotated[int, typer.Option(min=1, help="Value rows in one pass.")] = 2,
    rows: Annotated[int, typer.Option(min=1, help="Token rows of a batch.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 128,
    fraction: Fraction = 0.001,
    engine: EngineName = None,
    sequences: Annotated[int, typer.Option(min=1, help="Of the profile.")] = 32,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="While profiling.")
    ] = False,
    gflops: Annotated[
        float | None,
        typer.Option(help="Float32 speed of the target. Default: measured on this machine."),
    ] = None,
    json: Json = False,
) -> None:
    """Memory and time that a model takes in each stage, before anything is loaded."""
    from dataclasses import replace

    from seedtune.export.model.shape import read_shape
    from seedtune.runtime.bundle import DEFAULT_BOUNDS

    from ..estimate import estimate as estimates

    output = Output(json)
    shape = read_shape(model_source(model, output))
    speed = gflops * 1e9 if gflops is not None else estimates.measure_speed()
    bounds = replace(DEFAULT_BOUNDS, probes=probes, length=max(length, DEFAULT_BOUNDS.length))
    stages = [
        estimates.estimate_profile(
            shape,
            sequences=sequences,
            length=length,
            gradient_checkpointing=gradient_checkpointing,
            speed=speed,
        ),
        estimates.estimate_export(shape, fraction=fraction),
        estimates.estimate_directions(shape, fraction=fraction, speed=speed),
        estimates.estimate_bundle(shape, fraction=fraction),
        estimates.estimate_tuning(
            shape,
            bounds,
            rows=rows,
            length=length,
            engine=engine,
            fraction=fraction,
            speed=speed,
        ),
    ]
    if shape.gguf:
        stages.insert(0, estimates.estimate_gguf(shape))
    data = {
        stage.stage: {
            "bytes": stage.bytes,
            "seconds": stage.seconds,
            "components": stage.components,
        }
        for stage in stages
    }
    about = {"model": shape.name, "architecture": shape.architecture, "gflops": speed / 1e9}
    output.result({**about, "stages": data}, _estimate_table(stages, shape.name))


def _estimate_table(stages: list[Estimate], name: str) -> Table:
    table = Table("stage", title=f"Estimate for {name}", box=None, title_justify="left")
    table.add_column("memory (bundle: disk), MB", justify="right")
    table.add_column("seconds (tuning: one step)", justify="right")
    for stage in stages:
        seconds = f"{stage.seconds:.3g}" if stage.seconds else "-"
        table.add_row(stage.stage, f"{stage.bytes / 1e6:,.0f}", seconds, style="bold")
        for component, size in stage.components.items():
            table.add_row(f"  {component}", f"{size / 1e6:,.0f}", "")
    return table

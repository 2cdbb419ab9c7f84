"""``seedtune estimate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from seedtune.export.quantise import DEFAULT_ROUNDING, check_rounding

from .inputs import model_source
from .options import EngineName, Json, Rounding, Source
from .output import Output

if TYPE_CHECKING:
    from ..estimate.sizes import Estimate


def estimate(
    model: Source,
    rows: Annotated[int, typer.Option(min=1, help="Token rows of a batch.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 128,
    context: Annotated[int, typer.Option(min=2, help="Tokens of a text that is written.")] = 512,
    examples: Annotated[int, typer.Option(min=1, help="Training rows.")] = 2000,
    estimator: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Estimator; default: tune's to choose answers."),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="FORMAT,...", help="Programs, as of the export.")
    ] = "executorch",
    rounding: Rounding = DEFAULT_ROUNDING,
    engine: EngineName = None,
    gflops: Annotated[
        float | None,
        typer.Option(help="Float32 speed of the target. Default: measured on this machine."),
    ] = None,
    json: Json = False,
) -> None:
    """Memory and time that a model takes in each stage, before anything is loaded.

    Of an export by its defaults, which profiles first: its peak is the larger of the two.
    """
    from dataclasses import replace

    output = Output(json)
    with output.waiting("loading the libraries"):
        from seedtune.export.lower.programs import check_formats
        from seedtune.export.model.shape import read_shape
        from seedtune.runtime.bundle import DEFAULT_BOUNDS

        from ..estimate import device_stages, host_stages, sizes

    check_rounding(rounding)
    formats = check_formats([name.strip() for name in to.split(",")])
    shape = read_shape(model_source(model, output))
    if gflops is not None:
        speed = gflops * 1e9
        reading = speed * sizes.READ_A_FLOP
    else:
        with output.waiting("measuring this machine"):
            speed, reading = sizes.measure_speed(), sizes.measure_reading()
    bounds = replace(DEFAULT_BOUNDS, length=max(length, DEFAULT_BOUNDS.length))
    stages = [
        host_stages.estimate_profile(shape, length=length, speed=speed),
        host_stages.estimate_export(shape, to=formats, rounding=rounding, speed=speed),
        sizes.estimate_bundle(shape),
        device_stages.estimate_tuning(
            shape,
            bounds,
            rows=rows,
            length=length,
            engine=engine,
            estimator=estimator,
            examples=examples,
            speed=speed,
        ),
        device_stages.estimate_writing(shape, tokens=context, engine=engine, reading=reading),
    ]
    if shape.gguf:
        stages.insert(0, host_stages.estimate_gguf(shape))
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
    table.add_column("seconds (tuning: a step; writing: a token)", justify="right")
    for stage in stages:
        seconds = f"{stage.seconds:.3g}" if stage.seconds else "-"
        table.add_row(stage.stage, f"{stage.bytes / 1e6:,.0f}", seconds, style="bold")
        for component, size in stage.components.items():
            table.add_row(f"  {component}", f"{size / 1e6:,.0f}", "")
    return table

"""``seedtune quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Threads
from .output import Output


def quickstart(
    task: Annotated[str, typer.Option(metavar="NAME", help="Named classification task.")] = "sst2",
    steps: Annotated[int, typer.Option(min=1, help="Steps; more go on improving.")] = 120,
    seed: Annotated[int, typer.Option(help="Of noise and data order.")] = 0,
    folder: Annotated[
        Path, typer.Option(help="Where profile, bundle and run go; reused the next time.")
    ] = Path("seedtune-quickstart"),
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Profile, export and tune a real model, and show its accuracy before and after."""
    from ..quickstart import MODEL, run_quickstart

    output = Output(json)
    found = run_quickstart(
        task=task, steps=steps, seed=seed, folder=folder, threads=threads, output=output
    )
    output.result(found)
    bundle, run = found["bundle"], found["run"]
    output.note(
        "\nWhat next:\n"
        f"  seedtune predict {bundle} --run {run} --text 'a gripping, funny film'\n"
        f"  seedtune report {run}\n"
        "To talk to the model (its program that writes, too, takes some minutes to export):\n"
        f"  seedtune export {MODEL} {folder / 'talk'} && seedtune chat {folder / 'talk'}"
    )

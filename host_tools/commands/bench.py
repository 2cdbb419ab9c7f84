"""``seedtune bench NAME``: runs ``bench_NAME()`` of ``seedtune.host_tools.bench.NAME``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json
from .output import Output


def bench(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Benchmark to run; 'list' names them.")
    ],
    json: Json = False,
) -> None:
    """Measure one aspect of seedtune on this machine."""
    from importlib import import_module
    from pathlib import Path

    from .. import bench as benchmarks

    # The folder also holds what benchmarks share; those files define no bench_NAME.
    known = sorted(
        file.stem
        for folder in benchmarks.__path__
        for file in Path(folder).glob("*.py")
        if f"def bench_{file.stem}(" in file.read_text(encoding="utf-8")
    )
    output = Output(json)
    if name == "list":
        output.result({"benchmarks": known})
        return
    if name not in known:
        raise typer.BadParameter(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    module = import_module(f"{benchmarks.__name__}.{name}")
    output.result(getattr(module, f"bench_{name}")())

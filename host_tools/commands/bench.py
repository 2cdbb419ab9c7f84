"""``seedtune bench NAME``: runs ``bench_NAME()`` of ``seedtune.host_tools.bench.NAME``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from seedtune.runtime.errors import SeedtuneError

from .options import Json, Threads
from .output import Output


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _numbers(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers such as 0,1,2"
        ) from error


@contextmanager
def _numpy_on(threads: int | None) -> Iterator[None]:
    """Let numpy's products take so many threads, not every core: it reads the number where it is
    first imported, here or in a child process. Engines and torch are told by each benchmark."""
    before = dict(os.environ)
    if threads:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def bench(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Benchmark to run; 'list' names them.")
    ],
    results: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Where figures go. Default: the committed."),
    ] = None,
    json: Json = False,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="What to compare (quality, senders)."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Tasks to compare on (quality).")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1", help="Seeds to run (quality).")
    ] = None,
    forwards: Annotated[
        int | None, typer.Option(min=1, help="Forward passes of a tuning run (quality, paper).")
    ] = None,
    senders: Annotated[
        str | None, typer.Option(metavar="A,B", help="People, by the start of their id (senders).")
    ] = None,
    messages: Annotated[
        str | None, typer.Option(metavar="50,200", help="Messages to learn from (senders).")
    ] = None,
    test_rows: Annotated[
        int | None, typer.Option(min=1, help="Test rows to judge on (quality).")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle instead of the quickstart's (quality, senders, ...)."),
    ] = None,
    threads: Threads = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Only sum up the committed results.")
    ] = False,
) -> None:
    """Measure one aspect of seedtune on this machine."""
    from importlib import import_module
    from inspect import signature

    try:
        from .. import bench as benchmarks
    except ImportError:
        raise SeedtuneError(
            "benchmarks are not installed with the package: run this in a checkout of seedtune, "
            "installed by pip install -e '.[host]'"
        ) from None

    folders = [Path(folder) for folder in benchmarks.__path__]
    known = sorted({file.stem for each in folders for file in each.glob("*.py")} - {"__init__"})
    output = Output(json)
    if name == "list":
        output.result({"benchmarks": known})
        return
    if name not in known:
        raise typer.BadParameter(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    given: dict[str, Any] = {
        "methods": _names(methods),
        "tasks": _names(tasks),
        "seeds": _numbers(seeds),
        "forwards": forwards,
        "senders": _names(senders),
        "messages": _numbers(messages),
        "test_rows": test_rows,
        "bundle": bundle,
        "threads": threads,
        "summary": summary or None,
        "results": results,
    }
    asked = {option: value for option, value in given.items() if value is not None}
    with _numpy_on(threads):
        module = import_module(f"{benchmarks.__name__}.{name}")
        run, show = getattr(module, f"bench_{name}"), getattr(module, f"show_{name}", None)
        for option in sorted(set(asked) - set(signature(run).parameters)):
            option = {"results": "output"}.get(option, option.replace("_", "-"))
            raise typer.BadParameter(f"benchmark {name} takes no --{option}")
        figures = run(**asked)
    output.result(figures, show(figures) if show and not json else None)

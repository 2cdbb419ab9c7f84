"""``seedtune emulate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import ChosenTask, checked_bundle, spaced
from .options import Json
from .output import Output

if TYPE_CHECKING:
    from seedtune.runtime.bundle import Bundle
    from seedtune.runtime.tasks.rows import Row

_ROWS_USED = 64
"""A few steps see fewer; encoding thousands under emulation would take minutes."""
_QUICKSTART = Path("seedtune-quickstart/model/bundle")


def emulate(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE",
            help="Bundle folder or .seedtune file. Default: the quickstart's, exported first if "
            "it is not here.",
        ),
    ] = None,
    train: Annotated[
        Path | None, typer.Option("--train", help="Training rows, .jsonl or .csv.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME|FILE",
            help="Named task, or a JSON file with a task specification. Default: SST-2, or with "
            "--train the bundle's own.",
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            "--estimator", metavar="NAME", help="How to learn, as in 'tune'; default: what suits."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the run, at most.")] = 6,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step, at most.")] = 2,
    length: Annotated[int, typer.Option(min=2, help="Tokens; longer texts are shortened.")] = 16,
    wheel: Annotated[
        Path | None,
        typer.Option(
            "--wheel",
            help="Wheel of seedtune that carries its engine, to install on the device in place of "
            "the sources here.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Tune a bundle on an emulated arm64 device with 1 GB, kill and resume it, let it write, and
    compare values, losses and text with this machine's.

    The first call downloads the device's packages, 250 MB.
    """
    from ..emulate.host import need_packages
    from ..emulate.machine import Machine
    from ..emulate.rehearsal import plan, rehearse
    from ..emulate.system import packages_of
    from ..this_machine import machine

    output = Output(json)
    need_packages()  # before minutes of export
    if wheel is not None:
        packages_of(wheel)
    opened = _bundle(bundle, output)
    spec, rows = _rows(opened, train, task)
    settings: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "eval_every": 0}
    if estimator is not None:
        settings["estimator"] = estimator
    job = plan(opened, spec, rows, length=length, settings=settings)
    device = Machine(output.note, wheel)
    output.note(f"tuning on the device, with a kill after step {job.kill_after}")
    if opened.generation is None:
        output.note("the bundle only scores and will write nothing; export it again (--context)")

    def show(line: str) -> None:
        if line.startswith(("step ", "killed", "writing")):
            output.note(line)

    found = {"machine": machine(), **rehearse(job, device, console=show)}
    output.result(found)
    if not found["same_values"]:
        output.note("the device's values are not those that its journal gives on this machine")
        raise typer.Exit(1)


def _bundle(path: Path | None, output: Output) -> Bundle:
    if path is None and not _QUICKSTART.is_dir():
        from ..quickstart import prepare_model

        return prepare_model(output)[1].bundle
    return checked_bundle(path or _QUICKSTART, output)


def _rows(bundle: Bundle, train: Path | None, task: str | None) -> tuple[dict[str, Any], list[Row]]:
    """Task specification and training rows; SST-2 where neither is given."""
    from seedtune.runtime.errors import DataError

    chosen = ChosenTask.of(task or (None if train else "sst2"), bundle.task)
    if chosen.spec is None:
        raise DataError("the bundle has no task; give one with --task NAME or --task FILE")
    return chosen.spec, spaced(chosen.rows("train", train), _ROWS_USED)

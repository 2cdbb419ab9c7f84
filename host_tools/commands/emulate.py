"""``seedtune emulate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import ChosenTask, checked_bundle
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
    memory: Annotated[
        str, typer.Option(metavar="1G|2G|4G|8G", help="Memory of the machine.")
    ] = "1G",
    user: Annotated[
        bool, typer.Option("--user", help="Only the process, without a machine around it: faster.")
    ] = False,
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
    steps: Annotated[int, typer.Option(min=2, help="Steps of the run.")] = 6,
    rows: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 2,
    length: Annotated[int, typer.Option(min=2, help="Tokens; longer texts are shortened.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    eps: Annotated[float, typer.Option(help="Size of the perturbation.")] = 1e-2,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="What the tuned model goes on from on the device. Default: the first row's "
            "prompt, where the bundle can write.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that it writes, at most.")] = 8,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which the device is given up.")
    ] = 3600,
    console: Annotated[
        bool, typer.Option("--console", help="Show all that the device prints, on stderr.")
    ] = False,
    json: Json = False,
) -> None:
    """Tune a bundle on an emulated arm64 device, kill and resume it, let it write, and compare
    values, losses and text with this machine's.

    The first call downloads the device's packages: 150 MB with --user, 250 MB with its kernel.
    """
    from seedtune.runtime.estimators import Ground, complete
    from seedtune.runtime.settings import Settings

    from ..emulate.guest import Guest
    from ..emulate.host import USER_MODE, WHOLE_MACHINE, need_packages
    from ..emulate.machine import Machine, parse_memory
    from ..emulate.rehearsal import Job, rehearse
    from ..this_machine import machine

    output = Output(json)
    # Whatever the task: the run is to be the same work on every one, and moves the values.
    any_task = Ground(answers=0, head_rows=0, hidden_width=0, examples=_ROWS_USED)
    need_packages(USER_MODE if user else WHOLE_MACHINE)  # before minutes of export
    parse_memory(memory)
    opened = _bundle(bundle, output)
    spec, examples = _rows(opened, train, task)
    job = Job(
        bundle=opened,
        task=spec,
        rows=examples,
        length=length,
        settings=complete(
            Settings(steps=steps, batch_size=rows, lr=lr, eps=eps, eval_every=0), any_task
        ),
        kill_after=steps // 2,
        prompt=prompt,
        max_tokens=max_tokens,
    )
    # An unusable row or prompt is named now, not after minutes of downloading and emulation.
    job.prompt_tokens(job.encode()[1])
    device = Guest(output.note) if user else Machine(memory, output.note)
    output.note(f"tuning on the device: {steps} steps, a kill after {steps // 2}")
    if opened.generation is None:
        output.note("the bundle only scores and will write nothing; export it again (--context)")

    def show(line: str) -> None:
        if console or line.startswith(("step ", "killed", "writing")):
            output.note(line)

    found = {"machine": machine(), **rehearse(job, device, timeout=timeout, console=show)}
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
    from seedtune.runtime.tasks import read_rows

    chosen = ChosenTask.of(task or (None if train else "sst2"), bundle.task)
    if chosen.spec is None:
        raise DataError("the bundle has no task; give one with --task NAME or --task FILE")
    if train is not None:
        found = read_rows(train)
    elif chosen.data is not None:
        found = read_rows(chosen.data.train, f"{chosen.data.name} train row")
    else:
        raise DataError("no examples; give a file of rows with --train")
    return chosen.spec, found[:: max(1, len(found) // _ROWS_USED)][:_ROWS_USED]

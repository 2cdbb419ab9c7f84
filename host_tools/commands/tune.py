"""``seedtune tune``."""

from __future__ import annotations

import contextlib
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from seedtune.runtime.errors import DataError, TuningError

from .evaluate import shown
from .follow import Follower
from .held_out import HeldOut, held_out_rows, warn_of_held_out
from .inputs import ChosenTask, checked_model, memory_bytes, task_of_run, task_to_show
from .options import (
    BundleHash,
    BundlePath,
    EngineName,
    Json,
    MemoryLimit,
    OnLong,
    RunPath,
    TaskName,
    Threads,
)
from .outcome import outcome_of
from .output import Output
from .run_settings import given_settings

_SIGNAL_EXIT = {"SIGINT": 130, "SIGTERM": 143}
_LONGEST = 60.0
"""Seconds that the command of ``--while`` may take."""
_NOT_RUN = (126, 127)
"""What a shell exits with if it cannot run a command."""


def tune(
    ctx: typer.Context,
    bundle: BundlePath,
    run: RunPath,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            help="Training rows: .jsonl, .json, .csv, .tsv, .txt, .parquet, - (stdin); or such a "
            "file on the hub, hf://datasets/owner/name/file.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Held-out rows, in the same formats. Half of them decide the best step, the "
            "other half say how good it is; with --test all of them decide.",
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option("--test", help="Rows that decide nothing and say how good the step is."),
    ] = None,
    task: TaskName = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="With --labels, in place of --task: how a row becomes a prompt, such as "
            "'{text} It was'; \\n is a line break.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="WORD,...",
            help="The labels in the rows' field 'label', which continue the prompt, such as "
            "'good,bad'; or label=word, such as '1=great,0=terrible'.",
        ),
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Put so many training rows, with their labels, in front of every prompt; no run "
            "learns from them. They are read once, and the run keeps them.",
        ),
    ] = None,
    on_long: OnLong = "error",
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop this session after so many seconds.")
    ] = None,
    forwards: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many forward passes.")
    ] = None,
    while_: Annotated[
        str | None,
        typer.Option(
            "--while",
            metavar="COMMAND",
            help="Wait after a step while this command of the shell does not exit 0, for the "
            "reason that it prints; asked every 10 seconds.",
        ),
    ] = None,
    memory_limit: MemoryLimit = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with other settings or data.")
    ] = False,
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Tune a bundle with forward passes; resumes RUN if it has a journal.

    Settings that are not given are the run's own or, for a new run, the defaults.
    Ctrl-C finishes the step and leaves a run that the same command resumes (exit code 130).
    """
    from seedtune.runtime.tuning.budget import Budget, Control, signals

    output = Output(json)
    chosen = _task_of(task, template, labels)
    count = None if demonstrations is None else _count(demonstrations)
    spec = task_of_run(run) if chosen.spec is None else chosen.spec
    control = Control(
        None if while_ is None else partial(why_rest, while_),
        on_rest=lambda why: output.note(f"waiting: {why}" if why else "going on"),
    )
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(
            checked_model(
                bundle,
                output,
                task=spec if count is None else task_to_show(run, spec),
                on_long=on_long,
                engine=engine,
                threads=threads,
                memory_limit=memory_limit,
                sha256=sha256,
            )
        )
        rows = chosen.rows("train", train)
        if count is not None:
            with output.waiting("drawing demonstrations"):
                rows = model.show(rows, count)
        the_task = model.task
        examples = model.encode(rows)
        held_out = held_out_rows(run, chosen, the_task, data, test)
        warn_of_held_out(examples, held_out)
        follower = Follower(output)
        stack.enter_context(signals(control))
        tuner = stack.enter_context(
            model.tuner(
                run,
                examples,
                held_out.choosing,
                budget=Budget(seconds=seconds, forwards=forwards),
                control=control,
                allow_changes=allow_changes,
                on_evaluation=follower.evaluating,
                **given_settings(ctx),
            )
        )
        follower.run(tuner, metric=the_task.metric_name, held_out=len(held_out.choosing))
        with output.counting("judging the start and what ships") as progress:
            result = outcome_of(
                tuner,
                model,
                held_out,
                time.monotonic() - began,
                on_long=cast(Any, on_long),  # one of its names: the model was opened with it
                memory_limit=memory_bytes(memory_limit),
                progress=progress,
            )
        output.result(result, shown(result))
        _say_what_the_figures_are_of(output, held_out, result)
    code = _SIGNAL_EXIT.get(tuner.stop_reason or "", 0)
    if code:
        output.note("stopped; the same command resumes the run")
        raise typer.Exit(code)


def _task_of(task: str | None, template: str | None, labels: str | None) -> ChosenTask:
    if template is None and labels is None:
        return ChosenTask.of(task)
    if task is not None or template is None or labels is None:
        raise DataError("give --template and --labels together, or --task alone")
    return ChosenTask.of_words(template, labels)


def _count(demonstrations: str) -> int | Literal["auto"]:
    if demonstrations == "auto":
        return "auto"
    if not demonstrations.isascii() or not demonstrations.isdigit() or int(demonstrations) < 1:
        raise DataError(f"--demonstrations {demonstrations!r:.40} must be auto or a number from 1")
    return int(demonstrations)


def _say_what_the_figures_are_of(output: Output, held_out: HeldOut, result: dict[str, Any]) -> None:
    if not held_out.choosing:
        output.note("no held-out rows were given (--data), so the last step ships, not the best")
    elif not result["judged_rows"]:
        output.note(
            "before and after are of the rows that chose the step, which flatters it; give others "
            "with --test, or evaluate"
        )


def why_rest(command: str) -> str | None:
    """None if a command of the shell exits 0, else what it says, or what it exits with.

    Raises:
        TuningError: it cannot be run.
    """
    try:
        done = subprocess.run(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LONGEST,
        )
    except subprocess.TimeoutExpired:
        return f"{command} takes more than {_LONGEST:g} s"
    except OSError as error:
        raise TuningError(f"--while {command!r}: cannot be run: {error}") from error
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode in _NOT_RUN:
        raise TuningError(f"--while {command!r}: cannot be run: {''.join(said[:1])}")
    if done.returncode == 0:
        return None
    return said[0][:200] if said else f"{command} exits with {done.returncode}"

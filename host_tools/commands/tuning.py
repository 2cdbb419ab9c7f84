"""Commands that use a bundle: tune, evaluate, predict."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from seedtune.runtime.errors import DataError

from .condition import Condition
from .figures import answers_of, figures_of, shown
from .follow import Follower
from .held_out import HeldOut, held_out_rows, warn_of_held_out
from .inputs import ChosenTask, checked_model, memory_bytes, task_of_run, task_to_show, tuned_model
from .options import (
    BundleHash,
    BundlePath,
    EngineName,
    FromRun,
    FromValues,
    Json,
    MemoryLimit,
    OnLong,
    RunPath,
    TaskName,
    Threads,
)
from .outcome import outcome_of
from .output import Output, json_line
from .run_settings import given_settings

if TYPE_CHECKING:
    from seedtune.runtime.tasks import Task

_SIGNAL_EXIT = {"SIGINT": 130, "SIGTERM": 143}


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
        None if while_ is None else Condition(while_).why_rest,
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


def evaluate(
    bundle: BundlePath,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows: .jsonl, .csv and other formats (see tune).")
    ] = None,
    task: TaskName = None,
    run: FromRun = None,
    values: FromValues = None,
    on_long: OnLong = "error",
    memory_limit: MemoryLimit = None,
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Loss and accuracy (or perplexity) of a bundle on labelled rows, tuned or as exported."""
    from seedtune.runtime.engines.memory import peak_resident_bytes

    output = Output(json)
    chosen = ChosenTask.of(task)
    with tuned_model(
        bundle,
        output,
        run,
        values,
        task=chosen.spec,
        on_long=on_long,
        engine=engine,
        threads=threads,
        memory_limit=memory_limit,
        sha256=sha256,
    ) as (model, origin):
        examples = model.encode(chosen.rows("test", data))
        began = time.monotonic()
        with output.counting("evaluating") as progress:
            found = model.evaluate(examples, progress)
    result = {
        **figures_of(found, model.task.metric_name),
        **answers_of(found),
        "examples": found.examples,
        "forwards": found.forwards,
        "seconds": time.monotonic() - began,
        "values": origin,
        "peak_rss_bytes": peak_resident_bytes(),
    }
    output.result(result, shown(result))


def predict(
    bundle: BundlePath,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows: .jsonl, .csv and other formats (see tune).")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="One text, if the template has one field.")
    ] = None,
    task: TaskName = None,
    run: FromRun = None,
    values: FromValues = None,
    on_long: OnLong = "error",
    memory_limit: MemoryLimit = None,
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Answer rows or one text. Without --json, one JSON object a line."""
    from seedtune.runtime.engines.memory import peak_resident_bytes
    from seedtune.runtime.tasks.rows import Row

    output = Output(json)
    if (data is None) == (text is None):
        raise DataError("give rows with --data FILE or one text with --text TEXT")
    chosen = ChosenTask.of(task)
    with tuned_model(
        bundle,
        output,
        run,
        values,
        task=chosen.spec,
        on_long=on_long,
        engine=engine,
        threads=threads,
        memory_limit=memory_limit,
        sha256=sha256,
    ) as (model, _):
        if text is not None:
            rows = [Row({_only_field(model.task): text}, "--text")]
        else:
            rows = chosen.rows("test", data)
        with output.counting("predicting") as progress:
            found = model.predict(rows, progress)
    answers = [{"answer": item.answer, "scores": item.scores} for item in found]
    peak = peak_resident_bytes()
    if json:
        output.result({"predictions": answers, "peak_rss_bytes": peak})
        return
    for answer in answers:
        print(json_line(answer))
    if peak is not None:
        output.note(f"peak memory {peak / 1e6:.0f} MB")


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


def _only_field(task: Task) -> str:
    """The name of the one field of the task's template.

    Raises:
        DataError: it has none, or more.
    """
    names = task.template.names
    if len(names) == 1:
        return names[0]
    if not names:
        raise DataError(
            "--text goes into the template's field, and this task's template has none; "
            "give a text to continue to 'seedtune generate --prompt', or rows with --data FILE"
        )
    raise DataError(
        f"--text is one text, and this task's template has the fields {', '.join(names)}; "
        "give rows of them with --data FILE"
    )


def _say_what_the_figures_are_of(output: Output, held_out: HeldOut, result: dict[str, Any]) -> None:
    if not held_out.choosing:
        output.note("no held-out rows were given (--data), so the last step ships, not the best")
    elif not result["judged_rows"]:
        output.note(
            "before and after are of the rows that chose the step, which flatters it; give others "
            "with --test, or evaluate"
        )

"""Commands that use a bundle: tune, evaluate, predict."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from seedtune.runtime.errors import DataError, TuningError

from .figures import answers_of, figures_of, shown
from .follow import Follower
from .held_out import HeldOut, held_out_rows, warn_of_held_out
from .inputs import ChosenTask, checked_model, load_chosen, memory_bytes, task_of_run
from .options import (
    BundleHash,
    BundlePath,
    EngineName,
    FromRun,
    FromValues,
    Json,
    Limit,
    MemoryLimit,
    Objective,
    OnLong,
    RunPath,
    TaskName,
    Threads,
)
from .outcome import outcome_of
from .output import Output, json_line

if TYPE_CHECKING:
    from seedtune.runtime.model import Model

_SIGNAL_EXIT = {"SIGINT": 130, "SIGTERM": 143}


def tune(
    bundle: BundlePath,
    run: RunPath,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            help="Training rows: .jsonl, .json, .csv, .tsv, .txt, .parquet, - (stdin).",
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
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Use only this many of the held-out rows."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps of the whole run. Default: per-example 200, two-point 1000; "
            "readout at most, text-head just one pass over the rows.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples a step.")] = None,
    lr: Annotated[
        str | None, typer.Option(help="Peak learning rate, or 'auto': from trial steps.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Size of the perturbation, or 'auto': from loss noise.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="constant|linear|cosine", help="Of the learning rate.")
    ] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps of rising rate.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="Steps between held-out evaluations; 0: ends only.")
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How steps are estimated: readout (default where an answer is to be chosen), "
            "text-head (default for writing), per-example (default else), two-point.",
        ),
    ] = None,
    directions: Annotated[
        int | None, typer.Option(min=0, help="Directions a step; 0: the estimator's own number.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(metavar="rademacher|gaussian", help="Kind of noise.")
    ] = None,
    remember: Annotated[
        bool | None,
        typer.Option(
            "--remember/--no-remember",
            help="Estimator text-head: keep words of the rows in the values, as a memory.",
        ),
    ] = None,
    best_by: Annotated[
        str | None, typer.Option(metavar="metric|loss", help="What makes a step the best.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of noise and data order.")] = None,
    objective: Objective = "label_words",
    on_long: OnLong = "error",
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop this session after so many seconds.")
    ] = None,
    forwards: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many forward passes.")
    ] = None,
    durability: Annotated[
        str, typer.Option(help="When steps are forced to disk: 'record', '100' or '0.5s'.")
    ] = "1s",
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
    from seedtune.runtime.journal.file import Durability
    from seedtune.runtime.tuning.budget import Budget, Control, signals

    output = Output(json)
    given = {
        name: value
        for name, value in {
            "seed": seed,
            "steps": steps,
            "batch_size": batch_size,
            "lr": _number("lr", lr),
            "eps": _number("eps", eps),
            "schedule": schedule,
            "warmup": warmup,
            "eval_every": eval_every,
            "estimator": estimator,
            "directions": directions,
            "noise": noise,
            "remember": remember,
            "best_by": best_by,
        }.items()
        if value is not None
    }
    chosen = ChosenTask.of(task)
    control = Control()
    limit_bytes = memory_bytes(memory_limit)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(
            checked_model(
                bundle,
                output,
                task=task_of_run(run) if chosen.spec is None else chosen.spec,
                objective=objective,
                on_long=on_long,
                engine=engine,
                threads=threads or "auto",
                memory_limit=limit_bytes,
                sha256=sha256,
            )
        )
        the_task = model.task
        examples = chosen.encode("train", train, the_task)
        held_out = held_out_rows(run, chosen, the_task, data, test, limit)
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
                durability=Durability.parse(durability),
                allow_changes=allow_changes,
                on_evaluation=follower.evaluating,
                **given,
            )
        )
        follower.run(tuner, metric=the_task.metric_name, held_out=len(held_out.choosing))
        with output.counting("judging the start and what ships") as progress:
            result = outcome_of(
                tuner,
                model,
                held_out,
                time.monotonic() - began,
                on_long=on_long,
                memory_limit=limit_bytes,
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
    limit: Limit = None,
    objective: Objective = "label_words",
    on_long: OnLong = "error",
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Loss and accuracy (or perplexity) of a bundle on labelled rows, tuned or as exported."""
    from seedtune.runtime.engines.system_memory import peak_resident_bytes

    output = Output(json)
    chosen = ChosenTask.of(task)
    with _open(bundle, chosen, objective, on_long, engine, threads, sha256, output) as model:
        origin = load_chosen(model, run, values)
        examples = chosen.encode("test", data, model.task, limit=limit)
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
    engine: EngineName = None,
    threads: Threads = None,
    sha256: BundleHash = None,
    json: Json = False,
) -> None:
    """Answer rows or one text. Without --json, one JSON object a line."""
    from seedtune.runtime.engines.system_memory import peak_resident_bytes
    from seedtune.runtime.tasks import encode_rows
    from seedtune.runtime.tasks.rows import Row

    output = Output(json)
    if (data is None) == (text is None):
        raise DataError("give rows with --data FILE or one text with --text TEXT")
    chosen = ChosenTask.of(task)
    with _open(bundle, chosen, "label_words", on_long, engine, threads, sha256, output) as model:
        load_chosen(model, run, values)
        if text is not None:
            names = model.task.template.names
            if len(names) != 1:
                raise DataError(f"--text needs a template with one field, this has {len(names)}")
            examples = encode_rows(model.task, [Row({names[0]: text}, "--text")], labelled=False)
        else:
            examples = chosen.encode("test", data, model.task, labelled=False)
        with output.counting("predicting") as progress:
            found = model.predict(examples, progress)
    answers = [{"answer": item.answer, "scores": item.scores} for item in found]
    peak = peak_resident_bytes()
    if json:
        output.result({"predictions": answers, "peak_rss_bytes": peak})
        return
    for answer in answers:
        print(json_line(answer))
    if peak is not None:
        output.note(f"peak memory {peak / 1e6:.0f} MB")


def _number(name: str, text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise TuningError(f"setting {name}={text!r} must be above 0 or 'auto'") from None


def _open(
    bundle: Path,
    chosen: ChosenTask,
    objective: str,
    on_long: str,
    engine: str | None,
    threads: int | None,
    sha256: str | None,
    output: Output,
) -> Model:
    return checked_model(
        bundle,
        output,
        task=chosen.spec,
        objective=objective,
        on_long=on_long,
        engine=engine,
        threads=threads or "auto",
        sha256=sha256,
    )


def _say_what_the_figures_are_of(output: Output, held_out: HeldOut, result: dict[str, Any]) -> None:
    if not held_out.choosing:
        output.note("no held-out rows were given (--data), so the last step ships, not the best")
    elif not result["judged_rows"]:
        output.note(
            "before and after are of the rows that chose the step, which flatters it; give others "
            "with --test, or evaluate"
        )

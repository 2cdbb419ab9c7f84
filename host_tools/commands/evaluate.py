"""Commands that judge and answer with a bundle: evaluate and predict; figures as they show them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from seedtune.runtime.errors import DataError, warn

from .inputs import ChosenTask, tuned_model
from .options import (
    BundleHash,
    BundlePath,
    EngineName,
    FromRun,
    FromValues,
    Json,
    MemoryLimit,
    OnLong,
    TaskName,
    Threads,
)
from .output import Output, fields_table, json_line, printable

if TYPE_CHECKING:
    from seedtune.runtime.scoring.evaluation import Confusion, Evaluation
    from seedtune.runtime.tasks import Task


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


def figures_of(found: Evaluation, metric: str) -> dict[str, Any]:
    """Loss and metric; where an answer was chosen, macro-F1, too."""
    figures: dict[str, Any] = {"loss": found.loss, metric: found.metric}
    if found.confusion is not None:
        figures["macro_f1"] = found.confusion.macro_f1
    return figures


def answers_of(found: Evaluation) -> dict[str, Any]:
    """What the rows' right answers are like, and counts by right and then by given answer; empty
    where nothing is chosen. Warns where always giving one answer does as well."""
    if found.confusion is None:
        return {}
    if found.confusion.warning is not None:
        warn(found.confusion.warning)
    return {
        "most_frequent": {
            "answer": found.confusion.most_frequent,
            "share": found.confusion.most_frequent_share,
        },
        "counts": _counts(found.confusion),
    }


def shown(result: dict[str, Any]) -> RenderableType:
    """A result for people, its ``counts`` as a table behind the other fields: a row for each right
    answer, a column for each that was given."""
    counts = result.get("counts")
    if not counts:
        return fields_table(result)
    rest = {name: value for name, value in result.items() if name != "counts"}
    return Group(fields_table(rest), "", _counts_table(counts))


def _counts_table(counts: dict[str, dict[str, int]]) -> Table:
    given = list(dict.fromkeys(name for row in counts.values() for name in row))
    table = Table(box=None, pad_edge=False)
    table.add_column("right answer", no_wrap=True)
    for name in given:
        table.add_column(Text(f"given {printable(name)}"), justify="right")
    for right, row in counts.items():
        table.add_row(Text(printable(right), "bold"), *(str(row[name]) for name in given))
    return table


def _counts(confusion: Confusion) -> dict[str, dict[str, int]]:
    given = [*confusion.labels]
    if any(row[-1] for row in confusion.counts):
        given.append("(none)")
    return {
        label: dict(zip(given, row, strict=False))
        for label, row in zip(confusion.labels, confusion.counts, strict=True)
    }

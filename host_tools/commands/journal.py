"""``seedtune journal``: what can be done with a run besides going on with it."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from seedtune.runtime.errors import JournalError

from .inputs import checked_bundle
from .options import BundlePath, JournalPath, Json, RunPath
from .output import Output, fields_table

if TYPE_CHECKING:
    from seedtune.runtime.journal.file import Journal
    from seedtune.runtime.journal.history import Evaluated, History
    from seedtune.runtime.journal.remembered import Remembered
    from seedtune.runtime.journal.start import Start

app = typer.Typer(
    help="Show, verify, rewind, branch, export, compact, forget and share runs; "
    "words that they keep.",
    no_args_is_help=True,
)

Until = Annotated[
    int | None, typer.Option("--step", min=0, help="Stop after this many steps. Default: all.")
]


@app.command()
def show(journal: JournalPath, json: Json = False) -> None:
    """Settings, steps and evaluations of a journal, read without its bundle.

    Of a damaged one, what stands before the damage, and where that is.
    """
    from seedtune.runtime.journal.file import read_journal
    from seedtune.runtime.journal.state import history_of

    output, found = Output(json), read_journal(journal, tolerate=True)
    data = _described(found)
    shown = dict(data)
    for name in ("evaluations", "changes", "notes", "ends"):
        # A line each for people: many evaluations in one cell cannot be read.
        shown[name] = {f"step {step}": _joined(rest) for step, *rest in data[name]}
    shown["settings"] = that_matter(history_of(found))
    output.result(data, fields_table(shown))
    if found.damage is not None:
        output.note(f"what is readable ends there: {found.damage}")


@app.command()
def verify(
    journal: JournalPath, bundle: BundlePath, step: Until = None, json: Json = False
) -> None:
    """Check every record, replay the steps and compare with the hashes recorded on the way."""
    from seedtune.runtime.journal.file import read_journal
    from seedtune.runtime.journal.state import replay

    found = read_journal(journal, until=step)
    done = replay(found, _start(bundle), until=step)
    Output(json).result(
        {
            "steps": done.history.steps,
            "skipped": done.history.skipped,
            "evaluations": len(done.history.evaluations),
            "best": _evaluated(done.best),
            "bytes": found.end,
            "torn_bytes": found.torn_bytes,
            "hashes_checked": len(done.history.ends),
            "sha256": done.sha256,
            "best_sha256": done.best_values.sha256,
        }
    )


@app.command()
def rewind(
    run: RunPath,
    step: Annotated[int | None, typer.Argument(min=0, help="Steps to keep.")] = None,
    to_last_good: Annotated[
        bool,
        typer.Option("--to-last-good", help="Keep all steps before the damage of a damaged run."),
    ] = False,
    json: Json = False,
) -> None:
    """Cut a run back to its first STEP steps; what came later is gone (branch keeps it).

    So are the run's values file, outcome and report, which told of it: tune and report make them
    again.
    """
    from seedtune.runtime.journal import operations

    if (step is None) != to_last_good:
        raise JournalError("give a step to rewind to or --to-last-good, one of them")
    _say(json, operations.rewind(run, step))


@app.command()
def branch(
    journal: JournalPath,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New run folder.")],
    step: Until = None,
    json: Json = False,
) -> None:
    """Start a new run with the first steps of another."""
    from seedtune.runtime.journal import operations

    _say(json, operations.branch(journal, target, step=step))


@app.command()
def export(
    journal: JournalPath,
    bundle: BundlePath,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="safetensors file to write.")],
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Default: the best evaluated step.")
    ] = None,
    without_words: Annotated[
        bool, typer.Option("--without-words", help="Leave out words of the texts, if it keeps any.")
    ] = False,
    json: Json = False,
) -> None:
    """Write tuned values as float16 safetensors, laid out as in the bundle."""
    from seedtune.runtime.files import check_output
    from seedtune.runtime.journal.run_folder import VALUES_FILE, check_output_of
    from seedtune.runtime.journal.start import Start
    from seedtune.runtime.journal.state import replay
    from seedtune.runtime.scoring.values_file import export_values

    check_output_of(journal, output, own=VALUES_FILE)
    check_output(output, bundle)
    opened = checked_bundle(bundle, Output(json))
    done = replay(journal, Start.of(opened), until=step)
    if step is not None or done.best is None:
        values, of = done.values, done.history.steps
    else:
        values, of = done.best_values, done.best.step
    if without_words:
        values = values.without_words()
    digest = export_values(output, values, opened, step=of)
    Output(json).result({"file": str(output), "step": of, "float16_sha256": digest})


@app.command()
def compact(
    run: RunPath,
    bundle: BundlePath,
    json: Json = False,
) -> None:
    """Replace all but a run's last steps by a snapshot of its values."""
    from seedtune.runtime.journal import snapshots

    _say(json, snapshots.compact(run, _start(bundle)))


@app.command()
def words(run: RunPath, bundle: BundlePath, json: Json = False) -> None:
    """List the texts whose words a run (of text-head) keeps, the newest first."""
    from seedtune.runtime.model import open_model

    output = Output(json)
    with open_model(checked_bundle(bundle, output)) as model:
        found = model.remembered(run)
    sums = {"texts": len(found), "words": sum(each.words for each in found)}
    remembered = [each._asdict() for each in found]
    lines = {str(number): _told(each) for number, each in enumerate(found, start=1)}
    output.result(
        {"run": str(run), **sums, "remembered": remembered}, fields_table({**sums, **lines})
    )


@app.command()
def forget(
    run: RunPath,
    bundle: BundlePath,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", help="Forget the texts with this in them; may be given several times."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Forget what was learned since: 2026-11-20, '2026-11-20 18:00', or 30min, 2h, 3d.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget all words.")] = False,
    json: Json = False,
) -> None:
    """Take words of its texts out of a run (of text-head) for good; what it learned stays.

    Replaces all steps by a snapshot of the last, and the run's values file by one without these
    words. Evaluations go, which were made with the words, and so do the run's outcome and report
    and the hashes of its rows. With --all the run keeps no words from then on, unless tune is told
    --remember. Branches and what was exported elsewhere are left as they are.
    """
    from seedtune.runtime.model import open_model

    if everything == bool(text or since):
        raise JournalError("say what to forget: --text TEXT or --since TIME, or --all")
    begun = None if since is None else time_of(since)
    with open_model(checked_bundle(bundle, Output(json))) as model:
        _say(json, model.forget(run, text or (), begun))


@app.command()
def share(
    journal: JournalPath,
    bundle: BundlePath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Journal file to write.")],
    json: Json = False,
) -> None:
    """Write a run as one file that gives the same model wherever the bundle is.

    No training text is in it, but for demonstrations of the task. Whoever has the bundle too can
    test guesses of one: steps hold numbers that come from the losses of their batches, and hashes
    of all rows confirm a guess of all of them. A larger --batch-size makes guessing harder and
    guarantees nothing. Runs with numbers of single examples, batches of one included, are refused.
    """
    from seedtune.runtime.journal import operations

    done = operations.share(journal, file, _start(bundle))
    Output(json).result({"file": str(file), "bytes": file.stat().st_size, "sha256": done.sha256})


@app.command()
def receive(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Shared journal file.")],
    bundle: BundlePath,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="New run folder.")],
    json: Json = False,
) -> None:
    """Make a run folder of a shared journal, after a replay has confirmed its values."""
    from seedtune.runtime.journal import operations

    done = operations.receive(file, target, _start(bundle))
    Output(json).result({"run": str(target), "steps": done.history.steps, "sha256": done.sha256})


def time_of(text: str) -> float:
    """What ``--since`` says, in seconds since 1970.

    Raises:
        JournalError: it is no time.
    """
    span = re.fullmatch(r"(\d{1,6}) ?(min|h|d)", text.strip())
    if span is not None:
        return time.time() - int(span[1]) * {"min": 60, "h": 3600, "d": 86400}[span[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise JournalError(
            f"--since {text!r} must be a time such as 2026-11-20 or '2026-11-20 18:00', or a span "
            "such as 30min, 2h or 3d"
        ) from None


def _told(each: Remembered) -> str:
    """When a text was learned, its words, and itself."""
    when = "" if each.learned is None else f"{datetime.fromtimestamp(each.learned):%Y-%m-%d %H:%M}"
    return "  ".join(filter(None, [when, f"{each.words} words", " ".join(each.text.split())]))


def _start(bundle: Path) -> Start:
    from seedtune.runtime.journal.start import Start

    return Start.of(checked_bundle(bundle, Output(False)))


def _joined(items: list[Any]) -> str:
    return "  ".join(f"{item:.4f}" if isinstance(item, float) else str(item) for item in items)


def _evaluated(item: Evaluated | None) -> dict[str, Any] | None:
    return None if item is None else item._asdict()


def _say(json: bool, journal: Journal) -> None:
    """What became of a run, in a few lines; all of it as JSON."""
    from seedtune.runtime.journal.state import history_of

    history = history_of(journal)
    best = history.best
    shown: dict[str, Any] = {
        "journal": str(journal.path),
        "bytes": journal.end,
        "steps": history.steps,
        "skipped": history.skipped,
        "evaluations": len(history.evaluations),
        "best": None if best is None else f"step {best.step}  {_joined([best.loss, best.metric])}",
        "settings": "  ".join(f"{name} {value}" for name, value in that_matter(history).items()),
    }
    if journal.header.first_step:
        shown["first_step"] = journal.header.first_step
    Output(json).result(_described(journal), fields_table(shown))


def that_matter(history: History) -> dict[str, Any]:
    """The estimator's options and, of the settings that every run has, those that somebody chose,
    the seed and the batch size."""
    from seedtune.runtime.settings import Settings, options_of

    every = options_of(Settings)
    return {
        name: value
        for name, value in history.settings.to_dict().items()
        if name not in every or value != every[name].default or name in ("seed", "batch_size")
    }


def _described(journal: Journal) -> dict[str, Any]:
    from seedtune.runtime.journal.state import history_of

    history, header = history_of(journal), journal.header
    return {
        "journal": str(journal.path),
        "bytes": journal.end,
        "torn_bytes": journal.torn_bytes,
        "damage": None
        if journal.damage is None
        else {"byte": journal.damage.position, "last_good_step": journal.damage.step},
        "bundle_sha256": header.bundle_sha256,
        "values": header.entries,
        "first_step": header.first_step,
        "steps": history.steps,
        "skipped": history.skipped,
        "metric": header.metric["name"],
        "best": _evaluated(history.best),
        "evaluations": [list(item) for item in history.evaluations],
        "settings": history.settings.to_dict(),
        "changes": [list(item) for item in history.changes],
        "notes": [list(item) for item in history.notes],
        "ends": [list(item) for item in history.ends],
        "program": history.program,
        "task": header.task,
    }

"""Kinds of cases of ``fuzz`` about commands: what ``report`` reads, and numbers that are typed."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.main
from click.testing import CliRunner
from fuzz_odd import REFUSED, SOUND, Case, odd_json, own_file
from kill_run import ROWS
from seedtune.host_tools.cli import app
from seedtune.host_tools.commands.inputs import ChosenTask, memory_bytes
from seedtune.host_tools.commands.journal import that_matter
from seedtune.host_tools.reports.curves import run_curves
from seedtune.host_tools.reports.page import write_page
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.estimators import ESTIMATORS, settings_of
from seedtune.runtime.journal.metrics import MetricsLog, cut_metrics
from seedtune.runtime.journal.run_folder import METRICS_FILE, OUTCOME_FILE
from seedtune.runtime.settings import Settings, options_of
from seedtune.runtime.tasks import encode_rows, task_for

_TYPED = [
    "0", "-1", "1", "2", "7", "64", "1e3", "1e400", "-0", "0.5", "1e-400", "nan", "inf", "-inf",
    "", " ",
    "5 ", "0x10", "1_000", "١٢", "½", "x", "\x1b[2J", "\ud83d", "5,5", "0s", "-5s", "nans", "infs",
    "1e999s", "record", "auto", "300MB", "1.5GB", "1e3MB", "0MB", "0.0000001K", "999999999999999GB",
    "-5MB", "1 GB", "1GiB", "9" * 400, "9" * 400 + "MB", "1." + "9" * 400 + "GB", "9" * 5000,
    "100000",
    str(2**31), str(2**63), str(2**64), "1" + "0" * 30, "\n", "--", "true",
]  # fmt: skip
_WORDS = [
    "1", "0", "=", ",", "great", "terrible", "good,bad", "1=great,0=terrible", "0=,1=x", "a=b=c",
    " ",
    "\n", "\\n", "{text}", "{", "}", "{}", "{0}", "{text.x}", "{text!r}", "{text:9999999999}",
    "{{text}}",
    "It was", "\ud83d", "\x1b[2J", "é漢😀", "x" * 5000, "{label}",
]  # fmt: skip
_NUMBERS = {
    "tune": ["--steps", "--lr", "--eps", "--seed", "--batch-size", "--eval-every",
             "--seconds", "--forwards", "--memory-limit", "--threads",
             "--estimator", "--engine"],
    "evaluate": ["--memory-limit", "--threads"],
    "predict": ["--memory-limit", "--threads"],
    "generate": ["--max-tokens", "--temperature", "--top-p", "--seed", "--memory-limit",
    "--threads",
                 "--repetition-penalty"],
    "export": ["--probes", "--rows", "--length", "--candidates", "--positions", "--fraction",
               "--threads"],
    "estimate": ["--rows", "--length", "--context", "--examples"],
    "profile": ["--sequences", "--length"],
    "quickstart": ["--steps"],
    "bench": ["--forwards", "--steps"],
}  # fmt: skip
_OUTCOME: dict[str, Any] = {
    "bundle": {"model": "x"},
    "before": {"accuracy": 0.5, "loss": 0.75},
    "after": {"accuracy": 0.75, "loss": None},
    "counts": {"before": {"1": 3, "0": 5}, "after": {"1": 4, "0": 4}},
    "most_frequent": {"answer": "1", "share": 0.5},
    "judged_rows": 8, "message": "a remark", "stop_reason": None, "forwards": 32, "seconds": 1.5,
    "twice_as_many": "some minutes", "peak_rss_bytes": 10**8, "values_sha256": "a" * 64,
    "samples": [{"prompt": "<b>", "right": "x", "before": "y", "after": "z"}],
    "rows": [{"fields": {"text": "a"}, "right": "1", "before": {"answer": "0",
    "scores": {"0": 0.5}},
              "after": {"answer": None, "scores": {"1": None}}}],
}  # fmt: skip


def command_kinds(folder: Path, run: Path, bundle: Bundle) -> dict[str, Case]:
    """The kinds of cases.

    Args:
        folder: for their files.
        run: a finished run of a fake model.
    """
    own, command = own_file(folder), typer.main.get_command(app)
    found = run_curves(run)
    about = {"sha256": found.journal.header.bundle_sha256}
    outcome = _OUTCOME | {"steps": found.history.steps, "bundle": _OUTCOME["bundle"] | about}
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]

    def copied() -> Path:
        if not own("run").exists():
            shutil.copytree(run, own("run"))
        return own("run")

    def outcome_file(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json(outcome, rng)
        said, odd_lines = "", lines
        if rng.random() < 0.3:
            said, damaged = odd_json({"lines": lines}, rng)
            with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
                odd_lines = list(json.loads(damaged)["lines"])

        def read() -> str:
            place = copied()
            (place / OUTCOME_FILE).write_bytes(text)
            (place / METRICS_FILE).write_text("\n".join(map(json.dumps, odd_lines)))
            curves = run_curves(place)
            write_page(curves, place, own("page.html"), that_matter(curves.history))
            own("page.html").read_bytes().decode()
            return SOUND

        return f"{what}; {said}", read

    def metrics_file(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json([{"every": 2}, *lines], rng)

        def read() -> str:
            place = own("log")
            place.mkdir(exist_ok=True)
            with contextlib.suppress(ValueError, RecursionError):
                items = json.loads(text)
                (place / METRICS_FILE).write_text("\n".join(map(json.dumps, items)))
            log = MetricsLog(place, 9)
            log.append(kind="step", step=8, loss=float("nan"), skipped=None, seconds=1.0)
            log.close()
            cut_metrics(place, rng.choice([0, 2, 2**63]))
            return SOUND

        return what, read

    def typed(rng: random.Random) -> tuple[str, Callable[[], str]]:
        name = rng.choice([*["tune"] * 6, *_NUMBERS, "journal"])
        known = _NUMBERS.get(name, [])
        texts = {flag: rng.choice(_TYPED) for flag in rng.sample(known, min(len(known), 2))}
        number = rng.choice(_TYPED)
        if name == "journal":
            arguments = [
                *(["journal", "rewind", str(copied()), number],
                  ["journal", "branch", str(copied()), str(own("branch")), "--step", number]),
            ][rng.randrange(2)]  # fmt: skip
        else:
            arguments = [name, str(own("none"))] + [str(own("run"))] * (name == "tune")
            arguments += [part for pair in texts.items() for part in pair]

        def read() -> str:
            for each in ("run", "branch"):
                shutil.rmtree(own(each), ignore_errors=True)
            copied()
            return _called(command, arguments)

        return " ".join(arguments)[:300].encode("ascii", "backslashreplace").decode(), read

    def numbers(rng: random.Random) -> tuple[str, Callable[[], str]]:
        text, estimator = rng.choice(_TYPED), rng.choice(list(ESTIMATORS))
        known = {**options_of(Settings), **options_of(ESTIMATORS[estimator].options)}
        asked = rng.sample(sorted(known), 2)
        words = ["".join(rng.choices(_WORDS, k=rng.randrange(1, 4))) for _ in range(2)]
        which = rng.randrange(3)

        def read() -> str:
            if which == 0:
                memory_bytes(text)
            elif which == 1:
                taken = {name: known[name].parse(text) for name in asked}
                settings_of({"estimator": estimator, **taken}).to_dict()
            else:
                spec = ChosenTask.of_words(words[0], words[1]).spec
                encode_rows(task_for(bundle, spec, on_long="truncate"), ROWS[:2])
            return SOUND

        return f"{which}: {text[:60]!a} {estimator} {asked} {words!a}"[:400], read

    return {
        "outcome": outcome_file,
        "odd metrics": metrics_file,
        "command": typed,
        "typed number": numbers,
    }


def _called(command: Any, arguments: list[str]) -> str:
    """Call ``seedtune``; see that what it refuses takes one line, or is wrong usage."""
    result = CliRunner().invoke(command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 0:
        return SOUND
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if result.exit_code == 2 and not errors:
        return REFUSED  # of the command line itself, which says how it is used
    one = len(errors) == 1 and len(errors[0]) < 2000 and errors[0].isprintable()
    assert one, f"{result.exit_code}: {result.stderr[:300]!r}"
    return REFUSED

"""``tune --while COMMAND``: a run that goes on while a command of the shell exits 0."""

import json

import pytest
from command_line import bad, call, good
from seedtune.host_tools.commands import tune as module
from seedtune.host_tools.commands.tune import why_rest
from seedtune.runtime import engines
from seedtune.runtime.errors import TuningError
from seedtune.runtime.tuning import budget
from tiny_bundle import write_tiny_bundle
from value_engine import ValueEngine


@pytest.fixture
def tune(tmp_path, monkeypatch):
    """Arguments of a run of eight steps, and of a command."""
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    bundle = write_tiny_bundle(tmp_path / "bundle").path
    rows = tmp_path / "rows.jsonl"
    words = ["great", "dull\u00e9", "dull", "so bad"]
    lines = [json.dumps({"text": words[n % 4] * n, "label": n % 2}) for n in range(1, 17)]
    rows.write_text("\n".join(lines))
    how = ("--train", rows, "--steps", 8, "--batch-size", 2, "--estimator", "two-point",
           "--on-long", "truncate")  # fmt: skip
    return lambda name, command: ("tune", bundle, tmp_path / name, *how, "--while", command)


def test_it_waits_and_says_why_and_goes_on(tune, tmp_path, monkeypatch):
    monkeypatch.setattr(budget.Control.__init__, "__kwdefaults__", {
        **budget.Control.__init__.__kwdefaults__, "every": 0.05,
    })  # fmt: skip
    asked = tmp_path / "asked"
    command = (
        f"echo >> '{asked}'; test $(wc -l < '{asked}') -gt 3 || "
        "{ echo 'not charging'; echo more; exit 3; }"
    )
    told = call(*tune("run", command))
    assert told.exit_code == 0 and len(asked.read_text()) > 3
    lines = told.stderr.splitlines()
    assert lines.count("waiting: not charging") == 1
    assert lines.index("waiting: not charging") < lines.index("going on")
    assert good("journal", "show", tmp_path / "run")["steps"] == 8


def test_the_run_is_the_same_as_without(tune, tmp_path):
    without = good(*tune("without", "true")[:-2])
    assert good(*tune("with", "true"))["values_sha256"] == without["values_sha256"]


def test_a_command_that_cannot_be_run_is_an_error(tune):
    told = bad(7, *tune("run", "there-is-no-such-command"))
    assert "--while 'there-is-no-such-command': cannot be run: " in told


def test_what_is_said_of_a_command(monkeypatch):
    assert why_rest("exit 0") is None
    assert why_rest("exit 4") == "exit 4 exits with 4"
    assert why_rest("echo busy >&2; false") == "busy"
    monkeypatch.setattr(module, "_LONGEST", 0.1)
    assert why_rest("sleep 5") == "sleep 5 takes more than 0.1 s"
    with pytest.raises(TuningError, match="cannot be run"):
        why_rest("/")

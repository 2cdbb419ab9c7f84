"""The quickstart's loop on a tiny bundle: a second call goes on, a new bundle gets a new run."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from command_line import call
from seedtune.host_tools import quickstart as module
from seedtune.host_tools.cli import app
from seedtune.host_tools.commands.output import Output
from seedtune.host_tools.data.named_tasks import TaskData
from seedtune.host_tools.prepare import Prepared
from seedtune.runtime import engines
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.state import history_of
from tiny_bundle import TASK, write_tiny_bundle

DATA = TaskData(
    "tiny",
    [{"text": f"the plot was good {n}", "label": "1"} for n in range(20)],
    [{"text": f"the film was bad {n}", "label": "1"} for n in range(5)],
    TASK,
)


class FirstValueEngine(Engine):
    """Prefers the label that the first value names."""

    entries, hidden_width = 12, 0

    def score(self, batch, values, **nothing):
        first = np.tanh(values[:, :1, None])
        found = np.concatenate([-first, first], axis=2) - 2
        return Scores(np.tile(found, (1, len(batch.positions), 1)).astype(np.float32), None)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function: the quickstart's result on a bundle, with so many steps."""
    settings = {"estimator": "two-point", "lr": 1e-3, "eps": 1e-2, "eval_every": 10}
    runs = {"readout": settings, "sparse": {**settings, "lr": 1e-6}}
    monkeypatch.setattr(module, "RUNS", runs)
    monkeypatch.setattr(module, "load_task", lambda name: DATA)
    monkeypatch.setattr(module, "fetch", lambda name, progress: tmp_path / "model")
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: FirstValueEngine())

    def quickstart(bundle, steps):
        prepared = Prepared(tmp_path, bundle, 0.0, 0.0, True)
        monkeypatch.setattr(module, "prepare", lambda *asked, **more: prepared)
        asked = {"seed": 0, "threads": 1, "output": Output(True), "task": "tiny"}
        return module.run_quickstart(folder=tmp_path, steps=steps, **asked)

    return quickstart


def test_more_steps_go_on_where_fewer_ended(tmp_path, run):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    short = run(bundle, 8)
    longer = run(bundle, 20)
    assert longer["run"] == short["run"] and Path(longer["plot"]).read_text().count("<circle") == 16
    assert (short["forwards_readout"], longer["forwards_readout"]) == (16, 40)
    assert (short["forwards_sparse"], longer["forwards_sparse"]) == (14, 34)


def test_another_bundle_gets_a_run_of_its_own(tmp_path, run):
    first = run(write_tiny_bundle(tmp_path / "one"), 2)
    values = np.arange(12, dtype=np.float16)
    second = run(write_tiny_bundle(tmp_path / "two", values=values), 2)
    assert first["run"] != second["run"]


def test_a_part_is_watched_and_all_are_judged(tmp_path, run, monkeypatch):
    """The one sentence with the other label is not among those that are watched."""
    test = [{"text": f"the film was bad {n}", "label": str(int(n != 4))} for n in range(5)]
    monkeypatch.setattr(module, "load_task", lambda name: replace(DATA, test=test))
    monkeypatch.setattr(module, "WATCHED", 2)
    found = run(write_tiny_bundle(tmp_path / "bundle"), 4)
    evaluations = history_of(read_journal(Path(found["run"]))).evaluations
    assert {item.metric for item in evaluations} <= {0.0, 1.0}
    assert found["accuracy_before"] in (0.2, 0.8) and found["accuracy_after"] in (0.2, 0.8)
    assert found["accuracy_after"] == found[f"accuracy_after_{found['ships']}"]


def test_its_last_lines_are_commands_that_are_there(tmp_path, run, monkeypatch):
    found = run(write_tiny_bundle(tmp_path / "bundle"), 2)
    monkeypatch.setattr(module, "run_quickstart", lambda **asked: found)
    told = call("quickstart", "--folder", tmp_path / "here").stderr
    lines = [line.strip() for line in told.splitlines() if line.startswith("  seedtune ")]
    commands = [
        command.removeprefix("seedtune ") for line in lines for command in line.split(" && ")
    ]
    assert [command.split()[0] for command in commands] == ["predict", "report", "export", "chat"]
    for command in commands:
        name, *arguments = shlex.split(command)
        there = typer.main.get_command(app).commands[name]
        there.make_context(name, arguments)  # refuses what it does not know

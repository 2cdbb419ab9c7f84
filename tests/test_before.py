"""What the version before wrote still opens, replays to the same bits and goes on.

``data/before`` was made by that version from the tiny Llama: a bundle, the journals of six
estimators half way through their runs, one that was compacted, and exported values;
``expected.json`` holds what it found them to be. Hashes of values that a program's losses led to
differ between processors, so that only what a journal holds is compared with them.
``writes.seedtune`` is of a later version, whose ``generate`` took the values: see
``runtime/test_text.py``.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiler import needs_compiler
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.bundle.exported_values import load_values, values_sha256
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import JournalError
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import share, verify
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start
from seedtune.runtime.tasks import encode_rows, task_for
from seedtune.runtime.tuning.tuner import Tuner

BEFORE = Path(__file__).parent / "data" / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
RUNS: dict[str, Any] = EXPECTED["runs"]
HALF_WAY = [name for name, run in RUNS.items() if "whole_steps" in run]


@pytest.fixture(scope="module")
def opened() -> Bundle:
    return open_bundle(BEFORE / "tiny.seedtune")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A copy of the runs, free to be changed."""
    return shutil.copytree(BEFORE, tmp_path / "before")


def test_every_estimator_of_then_is_there() -> None:
    assert set(HALF_WAY) == {
        "two-point", "one-sided", "leave-one-out", "momentum", "gauss-newton", "readout",
    }  # fmt: skip
    assert set(HALF_WAY) <= set(ESTIMATORS)


def test_the_bundle_opens_with_the_same_hash(opened: Bundle) -> None:
    assert opened.sha256 == EXPECTED["bundle_sha256"]
    assert opened.task == EXPECTED["spec"]
    assert opened.basis is not None and opened.hidden_width > 0


def test_the_exported_values_load(opened: Bundle) -> None:
    found = load_values(BEFORE / "values.safetensors", opened)
    assert values_sha256(found) == EXPECTED["exported_values_sha256"]
    assert len(found) == opened.K + 2 * (opened.hidden_width + 1)


@pytest.mark.parametrize("name", RUNS)
def test_a_journal_replays_to_the_recorded_hash(opened: Bundle, name: str) -> None:
    start = Start.of(opened)
    found = replay(BEFORE / name, start)
    assert (found.history.steps, found.sha256) == (RUNS[name]["steps"], RUNS[name]["sha256"])
    assert verify(BEFORE / name, start).sha256 == RUNS[name]["sha256"]
    best = found.best
    assert best is not None
    if best.step >= found.journal.header.first_step:
        assert (found.best_values == replay(BEFORE / name, start, until=best.step).values).all()


@needs_compiler
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_to_its_end_and_its_replay_agrees(
    opened: Bundle, runs: Path, name: str
) -> None:
    start, task = Start.of(opened), task_for(opened)
    examples = encode_rows(task, EXPECTED["rows"])
    done, end = RUNS[name]["steps"], RUNS[name].get("whole_steps", RUNS[name]["steps"] + 5)
    engine = open_engine(opened, "auto")
    with Tuner(
        engine,
        start,
        task,
        examples,
        folder=runs / name,
        settings={"steps": end},
        eval_examples=examples,
    ) as tuner:
        assert values_sha256(tuner.values) == RUNS[name]["sha256"]
        reports = list(tuner)
        assert [report.step for report in reports] == list(range(done + 1, end + 1))
        assert all(np.isfinite(report.loss) and report.skipped is None for report in reports)
        last, tuned = values_sha256(tuner.values), tuner.tuned()
    found = replay(runs / name, start)
    assert (found.history.steps, found.sha256) == (end, last)
    assert (found.best_values == tuned.values).all()


@pytest.mark.parametrize("name", HALF_WAY)
def test_the_header_names_its_shape_and_the_journal_is_shared_if_it_may(
    opened: Bundle, tmp_path: Path, name: str
) -> None:
    shape = read_journal(BEFORE / name).header.shape
    sizes = {"rows": 2, "width": opened.hidden_width, "answers": 2}
    assert shape == (sizes if name == "readout" else None)
    start, sent = Start.of(opened), tmp_path / "sent.journal"
    if ESTIMATORS[name].holds_examples:
        with pytest.raises(JournalError, match="holds numbers of single examples"):
            share(BEFORE / name, sent, start)
    else:
        share(BEFORE / name, sent, start)
        assert replay(sent, start).sha256 == RUNS[name]["sha256"]

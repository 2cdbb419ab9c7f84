"""An estimator is one file and a line, an option of its own a line in its dataclass: a toy one with
one tunes, is killed, resumes, replays and is shared, and has its flag, its help, its place in the
header and in the README's table."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from command_line import bad, call, good, write_rows
from doc_pages import estimators_table
from every_operation import check_every_operation
from faults import run_and_kill
from numpy.typing import NDArray
from seedtune.runtime import engines
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import ESTIMATORS, EstimatorSpec, Measured
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.state import replay
from seedtune.runtime.settings import Perturbing, option
from tiny_bundle import write_tiny_bundle
from tiny_run import START, run, tuner
from value_engine import ValueEngine

# The file.


@dataclass(frozen=True)
class InTurnOptions(Perturbing):
    lr: float = option(4.0, "Peak learning rate.", above=0)
    eps: float = option(0.02, "Size of the perturbation.", above=0)
    repeat: float = option(0.5, "Share of an entry's last move that is repeated.", least=0, most=1)

    @property
    def forwards(self):
        return 2


@dataclass
class InTurn:
    """Two probes along one entry, another one each step. Its state is ``last``, float32 ``[K]``:
    what each entry moved by when it was last its turn, a part of which is repeated."""

    repeat: float
    entries: int
    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    probes = 2
    scalar_count = 1
    signs = 0

    def memory_bytes(self, examples):
        return 0

    def measure(self, look, values, at):
        rows = np.stack([values.sensitive, values.sensitive])
        rows[:, at.step % self.entries] += np.array([at.eps, -at.eps], np.float32)
        losses = look.losses(rows)
        above, below = losses.mean(axis=1)
        return Measured(losses, np.array([(above - below) / (2 * at.eps)], np.float16))

    def apply(self, values, scalars, at):
        entry = at.step % self.entries
        last = self.state.setdefault("last", np.zeros_like(values.sensitive))
        last[entry] *= np.float32(self.repeat)
        last[entry] -= np.float32(at.lr * float(scalars[0]))
        values.sensitive[entry] += last[entry]


def _make(options, settings, shape, part):
    assert shape is not None
    return InTurn(options.repeat, shape["entries"])


def _shape(options, context):
    return {"entries": context.entries}


SPEC = EstimatorSpec(
    name="in-turn",
    summary="one entry a step",
    options=InTurnOptions,
    make=_make,
    steps=160,
    eval_every=40,
    shape=_shape,
)

# The tests.

ASKED = {"seed": 2, "batch_size": 8, "estimator": "in-turn"}
TOLD = "estimator in-turn has no option 'seeds'; its options: lr, schedule, eps, repeat"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The one line."""
    monkeypatch.setitem(ESTIMATORS, SPEC.name, SPEC)


@pytest.fixture
def whole(tmp_path):
    """A run from start to end, and the hash of its values."""
    return tmp_path / "whole", run(tmp_path / "whole", settings=ASKED)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    yield write_tiny_bundle(tmp_path / "bundle").path


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", (1, 0, 3, 2, 5, 4, 7, 6))


def test_it_learns_with_its_own_defaults(tmp_path):
    with tuner(tmp_path, settings=ASKED) as live:
        list(live)
        first, last = live.history.evaluations[0], live.history.evaluations[-1]
        its = live.history.settings
    assert last.loss < first.loss - 0.05
    assert its.options == InTurnOptions() and (its.steps, its.eval_every) == (160, 40)


def test_its_option_is_in_the_header_kept_on_resume_and_changed_when_allowed(tmp_path, whole):
    assert run(tmp_path / "other", settings={**ASKED, "repeat": 0.25}) != whole[1]
    assert read_journal(tmp_path / "other").header.settings["repeat"] == 0.25
    assert read_journal(whole[0]).header.settings["repeat"] == 0.5
    for kept in (None, {}, {"repeat": None}, {"repeat": 0.25}, {**ASKED, "lr": None}):
        with tuner(tmp_path / "other", settings=kept) as live:
            assert live.history.changes == []
    refused = r"the run has repeat=0\.25, not 0\.75; give the same, or allow changes"
    with pytest.raises(TuningError, match=refused):
        tuner(tmp_path / "other", settings={"repeat": 0.75})
    with tuner(tmp_path / "other", settings={"repeat": 0.75}, allow_changes=True) as live:
        assert live.history.changes == [(160, "repeat", 0.75)]
    with pytest.raises(TuningError, match=r"repeat=2 must be a number, 0 to 1"):
        tuner(tmp_path / "bad", settings={**ASKED, "repeat": 2})
    for folder in ("new", "other"):
        with pytest.raises(TuningError, match=TOLD):
            tuner(tmp_path / folder, settings={**ASKED, "seeds": 2})


def test_the_command_line_has_its_flag_with_help_and_refuses_those_of_others(
    tmp_path, bundle, rows, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "600")
    words = " ".join(call("tune", "--help").stdout.split())
    assert "in-turn: one entry a step" in words
    assert "--repeat NUMBER in-turn (0.5): Share of an entry's last move that is repeated." in words
    assert "in-turn (4): Peak learning rate." in words and "in-turn 160" in words
    asked = ["tune", bundle, tmp_path / "run", "--train", rows, "--steps", 3]
    asked += ["--estimator", "in-turn"]
    assert "repeat='much' must be a number, 0 to 1" in bad(7, *asked, "--repeat", "much")
    assert TOLD in bad(7, *asked, "--seeds", 2)
    assert "estimator per-example has no option 'repeat'; its options: lr," in bad(
        7, *asked[:-2], "--repeat", 0.5
    )
    assert good(*asked, "--repeat", 0.25)["lr"] == 4.0
    assert good("journal", "show", tmp_path / "run")["settings"]["repeat"] == 0.25
    assert "repeat=0.25, not 0.5; give the same" in bad(7, *asked, "--repeat", 0.5)
    shown = call("journal", "show", tmp_path / "run").stdout
    assert "repeat 0.25" in " ".join(shown.split())


def test_the_readme_s_table_has_its_row():
    row = (
        "| `in-turn` | one entry a step | `--lr` 4, `--schedule` constant, "
        "`--eps` 0.02, `--repeat` 0.5 |"
    )
    assert estimators_table().splitlines()[-1] == row


def test_it_is_killed_resumes_and_replays(tmp_path, whole):
    rng, kills = random.Random(1), 0
    for number in range(5):
        folder = tmp_path / f"run{number}"
        while run_and_kill(lambda: run(folder, settings=ASKED), rng.uniform(0, 0.4)):  # noqa: B023
            kills += 1
        assert replay(folder, START).sha256 == whole[1]
    assert kills


def test_every_operation_keeps_its_state(tmp_path):
    check_every_operation(tmp_path, tuner, START, ASKED)


def test_a_journal_of_an_estimator_that_is_not_there_is_refused_by_name(whole, monkeypatch):
    monkeypatch.delitem(ESTIMATORS, SPEC.name)
    with pytest.raises(JournalError, match="estimator='in-turn' must be one of readout, "):
        replay(whole[0], START)

"""An estimator is one file and a line, an option of its own a line in its dataclass: a toy one with
one tunes, is killed, resumes, replays and is shared, and has its flag, its help, its place in the
header and in the README's table."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from command_line import bad, call, good, write_rows
from doc_pages import estimators_table
from every_operation import check_every_operation
from faults import run_and_kill
from numpy.typing import NDArray
from seedtune.runtime import engines, estimators
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import ESTIMATORS, EstimatorSpec, Measured, RunContext, Shape
from seedtune.runtime.estimators.rates import Perturbing
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import share
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.options import option
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.part import Part
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.settings import Settings
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
    def forwards(self) -> int:
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

    def memory_bytes(self, examples: int) -> int:
        return 0

    def measure(self, look: Look, values: Values, *, seed: int, step: int, eps: float) -> Measured:
        rows = np.stack([values.sensitive, values.sensitive])
        rows[:, step % self.entries] += np.array([eps, -eps], np.float32)
        losses = look.losses(rows)
        above, below = losses.mean(axis=1)
        return Measured(losses, np.array([(above - below) / (2 * eps)], np.float16))

    def apply(
        self,
        values: Values,
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        entry = step % self.entries
        last = self.state.setdefault("last", np.zeros_like(values.sensitive))
        last[entry] *= np.float32(self.repeat)
        last[entry] -= np.float32(lr * float(scalars[0]))
        values.sensitive[entry] += last[entry]


def _make(
    options: InTurnOptions, settings: Settings, shape: Shape | None, part: Part | None
) -> InTurn:
    assert shape is not None
    return InTurn(options.repeat, shape["entries"])


def _shape(options: InTurnOptions, context: RunContext) -> Shape:
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
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setitem(ESTIMATORS, SPEC.name, SPEC)


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, str]:
    """A run from start to end, and the hash of its values."""
    return tmp_path / "whole", run(tmp_path / "whole", settings=ASKED)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    yield write_tiny_bundle(tmp_path / "bundle").path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", (1, 0, 3, 2, 5, 4, 7, 6))


def test_it_learns_with_its_own_defaults(tmp_path: Path) -> None:
    with tuner(tmp_path, settings=ASKED) as live:
        list(live)
        first, last = live.history.evaluations[0], live.history.evaluations[-1]
        its = live.history.settings
    assert last.loss < first.loss - 0.05
    assert its.options == InTurnOptions() and (its.steps, its.eval_every) == (160, 40)


def test_its_option_is_in_the_header_kept_on_resume_and_changed_when_allowed(
    tmp_path: Path, whole: tuple[Path, str]
) -> None:
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
    tmp_path: Path, bundle: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_the_readme_s_table_has_its_row() -> None:
    row = (
        "| `in-turn` | one entry a step | `--lr` 4, `--schedule` constant, "
        "`--eps` 0.02, `--repeat` 0.5 |"
    )
    assert estimators_table().splitlines()[-1] == row


def test_it_is_killed_resumes_and_replays(tmp_path: Path, whole: tuple[Path, str]) -> None:
    rng, kills = random.Random(1), 0
    for number in range(5):
        folder = tmp_path / f"run{number}"
        while run_and_kill(lambda: run(folder, settings=ASKED), rng.uniform(0, 0.4)):  # noqa: B023
            kills += 1
        assert replay(folder, START).sha256 == whole[1]
    assert kills


def test_every_operation_keeps_its_state(tmp_path: Path) -> None:
    check_every_operation(tmp_path, tuner, START, ASKED)


def test_its_perturbation_is_measured_where_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Measuring(InTurnOptions):
        eps: float | Literal["auto"] = option("auto", "Size of the perturbation.", above=0)  # type: ignore[assignment]

    monkeypatch.setitem(ESTIMATORS, SPEC.name, replace(SPEC, options=Measuring))
    with tuner(tmp_path, settings=ASKED) as live:
        assert live.loss_noise is not None
        assert live.history.settings.options.perturbation == live.loss_noise.eps


def test_it_is_the_default_where_it_says_that_it_suits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(SPEC, suits=lambda context: context.examples == 64)
    others = {name: spec for name, spec in ESTIMATORS.items() if name != SPEC.name}
    monkeypatch.setattr(estimators, "ESTIMATORS", {SPEC.name: first, **others})
    for number, asked in enumerate((None, {}, {"seed": 1}, {"estimator": None})):
        with tuner(tmp_path / str(number), settings=asked) as live:
            assert live.history.settings.estimator == "in-turn"


def test_a_journal_that_it_says_holds_examples_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, str]
) -> None:
    monkeypatch.setitem(ESTIMATORS, SPEC.name, replace(SPEC, holds_examples=True))
    with pytest.raises(JournalError, match="holds numbers of single examples"):
        share(whole[0], tmp_path / "sent.journal", START)
    assert not (tmp_path / "sent.journal").exists()


def test_what_it_says_is_fixed_cannot_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tuner(tmp_path, settings=ASKED) as live:
        next(iter(live))

    @dataclass(frozen=True)
    class Fixing(InTurnOptions):
        eps: float = option(0.02, "Size of the perturbation.", above=0, fixed=True)

    other = {**ASKED, "eps": 0.01}
    monkeypatch.setitem(ESTIMATORS, SPEC.name, replace(SPEC, options=Fixing))
    with pytest.raises(TuningError, match=r"the run has eps=0\.02, not 0\.01; give the same, or s"):
        tuner(tmp_path, settings=other, allow_changes=True)
    monkeypatch.setitem(ESTIMATORS, SPEC.name, replace(SPEC, fixes_batch_size=True))
    fewer = {**ASKED, "batch_size": 4}
    with pytest.raises(TuningError, match=r"the run has batch_size=8, not 4; give the same, or s"):
        tuner(tmp_path, settings=fewer, allow_changes=True)
    monkeypatch.setitem(ESTIMATORS, SPEC.name, SPEC)
    for asked in (other, fewer):
        with tuner(tmp_path, settings=asked, allow_changes=True) as live:
            assert live.history.settings.options.perturbation == 0.01


@pytest.mark.parametrize("mends", [False, True])
def test_a_bad_loss_is_skipped_unless_its_step_is_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mends: bool
) -> None:
    monkeypatch.setitem(ESTIMATORS, SPEC.name, replace(SPEC, mends_bad_losses=mends))
    with tuner(tmp_path, settings={**ASKED, "loss_jump": 1e-6}) as live:
        skipped = [report.skipped for _, report in zip(range(8), live, strict=False)]
    assert ("loss jump" in skipped) is not mends


def test_a_journal_of_an_estimator_that_is_not_there_is_refused_by_name(
    whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ESTIMATORS, SPEC.name)
    with pytest.raises(JournalError, match="estimator='in-turn' must be one of readout, "):
        replay(whole[0], START)

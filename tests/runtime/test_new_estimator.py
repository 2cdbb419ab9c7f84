"""An estimator is one file and a line: a toy one tunes, is killed, resumes, replays, is shared."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import run_and_kill
from numpy.typing import NDArray
from seedtune.runtime import estimators
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import ESTIMATORS, Facts, Look, Measured
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import receive, rewind, share, verify
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.settings import Settings
from tiny_run import START, run, tuner


@dataclass
class InTurn:
    """Two probes along one entry, another one each step. Its state is ``last``, float32 ``[K]``:
    what each entry moved by when it was last its turn, a half of which is repeated."""

    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    probes = 2
    scalar_count = 1
    own_entries = 0
    words = 0
    signs = 0

    def memory_bytes(self, examples: int) -> int:
        return 0

    def measure(
        self, look: Look, values: NDArray[np.float32], *, seed: int, step: int, eps: float
    ) -> Measured:
        rows = np.stack([values, values])
        rows[:, step % len(values)] += np.array([eps, -eps], np.float32)
        losses = look.losses(rows)
        above, below = losses.mean(axis=1)
        return Measured(losses, np.array([(above - below) / (2 * eps)], np.float16))

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        entry = step % len(values)
        last = self.state.setdefault("last", np.zeros_like(values))
        last[entry] = np.float32(0.5) * last[entry] - np.float32(lr * float(scalars[0]))
        values[entry] += last[entry]


FACTS = Facts(
    name="in-turn",
    summary="one entry a step",
    make=lambda its, shape: InTurn(),
    forwards=lambda directions: 2,
    directions=1,
    least_directions=1,
    most_directions=1,
    lr=4.0,
    eps=0.02,
    steps=160,
    eval_every=40,
)
ASKED = Settings(seed=2, batch_size=8, estimator="in-turn")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setitem(ESTIMATORS, FACTS.name, FACTS)


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, str]:
    """A run from start to end, and the hash of its values."""
    return tmp_path / "whole", run(tmp_path / "whole", settings=ASKED)


def test_it_learns_with_its_own_defaults(tmp_path: Path) -> None:
    with tuner(tmp_path, settings=ASKED) as live:
        list(live)
        first, last = live.history.evaluations[0], live.history.evaluations[-1]
        its = live.history.settings
    assert last.loss < first.loss - 0.05
    assert (its.lr, its.eps, its.steps, its.eval_every, its.directions) == (4.0, 0.02, 160, 40, 1)
    with pytest.raises(TuningError, match="directions=2 must be 1 for in-turn"):
        tuner(tmp_path / "two", settings=replace(ASKED, directions=2))


def test_it_is_killed_resumes_and_replays(tmp_path: Path, whole: tuple[Path, str]) -> None:
    rng, kills = random.Random(1), 0
    for number in range(5):
        folder = tmp_path / f"run{number}"
        while run_and_kill(lambda: run(folder, settings=ASKED), rng.uniform(0, 0.4)):  # noqa: B023
            kills += 1
        assert replay(folder, START).sha256 == whole[1]
    assert kills
    with tuner(tmp_path / "own", settings=ASKED) as live:
        for report in live:
            if report.step == 70:
                break
    assert run(tmp_path / "own", settings=None) == whole[1]


def test_it_is_shared_rewound_and_compacted(tmp_path: Path, whole: tuple[Path, str]) -> None:
    share(whole[0], tmp_path / "sent.journal", START)
    assert receive(tmp_path / "sent.journal", tmp_path / "received", START).sha256 == whole[1]
    rewind(tmp_path / "received", 150)
    compact(tmp_path / "received", START)
    assert read_journal(tmp_path / "received").header.first_step == 150 - 64
    assert run(tmp_path / "received", settings=None) == whole[1]
    assert verify(tmp_path / "received", START).sha256 == whole[1]


def test_its_rate_is_measured_where_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ESTIMATORS, FACTS.name, replace(FACTS, lr="auto", eps="auto"))
    with tuner(tmp_path, settings=ASKED) as live:
        assert live.step_size is not None and live.loss_noise is not None
        assert live.history.settings.lr == live.step_size.lr != 4.0


def test_it_is_the_default_where_it_says_that_it_suits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(FACTS, suits=lambda ground: ground.examples == 64)
    others = {name: facts for name, facts in ESTIMATORS.items() if name != FACTS.name}
    monkeypatch.setattr(estimators, "ESTIMATORS", {FACTS.name: first, **others})
    for number, asked in enumerate((None, {}, {"seed": 1}, Settings())):
        with tuner(tmp_path / str(number), settings=asked) as live:
            assert live.history.settings.estimator == "in-turn"


def test_a_journal_that_it_says_holds_examples_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, str]
) -> None:
    monkeypatch.setitem(ESTIMATORS, FACTS.name, replace(FACTS, holds_examples=True))
    with pytest.raises(JournalError, match="holds numbers of single examples"):
        share(whole[0], tmp_path / "sent.journal", START)
    assert not (tmp_path / "sent.journal").exists()


def test_what_it_says_is_fixed_cannot_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tuner(tmp_path, settings=ASKED) as live:
        next(iter(live))
    other = replace(ASKED, eps=0.01)
    monkeypatch.setitem(ESTIMATORS, FACTS.name, replace(FACTS, fixed=("eps",)))
    with pytest.raises(TuningError, match=r"the run has eps=0\.02, not 0\.01; give the same, or s"):
        tuner(tmp_path, settings=other, allow_changes=True)
    monkeypatch.setitem(ESTIMATORS, FACTS.name, FACTS)
    with tuner(tmp_path, settings=other, allow_changes=True) as live:
        assert live.history.settings.eps == 0.01


@pytest.mark.parametrize("mends", [False, True])
def test_a_bad_loss_is_skipped_unless_its_step_is_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mends: bool
) -> None:
    monkeypatch.setitem(ESTIMATORS, FACTS.name, replace(FACTS, mends_bad_losses=mends))
    with tuner(tmp_path, settings=replace(ASKED, loss_jump=1e-6)) as live:
        skipped = [report.skipped for _, report in zip(range(8), live, strict=False)]
    assert ("loss jump" in skipped) is not mends


def test_a_journal_of_an_estimator_that_is_not_there_is_refused_by_name(
    whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ESTIMATORS, FACTS.name)
    with pytest.raises(JournalError, match="estimator='in-turn' must be one of readout, "):
        replay(whole[0], START)

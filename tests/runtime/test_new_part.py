"""A kind of part is a file and a line: a toy one tunes, resumes, compacts, is kept and left out."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from every_operation import check_every_operation
from fakes import FakeEngine, fake_start
from numpy.typing import NDArray
from seedtune.runtime.errors import BundleError, JournalError
from seedtune.runtime.estimators import ESTIMATORS, EstimatorSpec, Measured
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.snapshots import forget
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring import parts
from seedtune.runtime.scoring.evaluation import evaluate
from seedtune.runtime.scoring.part import Part
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values, load_values
from seedtune.runtime.settings import Scheduled, option
from tiny_bundle import write_tiny_bundle
from tiny_run import HELD_OUT, START, TASK, K, run, tuner

KIND = "candidate-bias"


@dataclass(frozen=True, eq=False)
class Bias(Part):
    """Adds a number to the scores of each candidate. The last two of its four keep words."""

    own: NDArray[np.float32]
    description = {"kind": KIND}  # noqa: RUF012

    def copy(self):
        return replace(self, own=self.own.copy())

    def for_task(self, task, engine):
        return self

    def changed(self, scores, batch):
        return scores.logp + self.own[:2]

    @property
    def words(self):
        return self.own[2:]


class Biases:
    def fits(self, task, engine):
        return True

    def restore(self, description, own=None):
        own = np.zeros(4, np.float32) if own is None else own
        if own.shape != (4,):
            raise ValueError(f"{own.size} numbers of a bias, not 4")
        return Bias(own)


@dataclass
class Counting:
    """Moves the bias towards the answer that was right more often, and keeps the first words."""

    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    probes, scalar_count, signs = 1, 3, 0

    def memory_bytes(self, examples):
        return 0

    def measure(self, look, values, at):
        losses, gold, words = np.empty((1, look.examples)), [], 0
        for numbers, batch, scores in look.forwards(values.sensitive):
            assert values.part is not None
            losses[:, numbers] = look.task.losses(values.part.changed(scores, batch), batch)
            gold += batch.gold.tolist()
            words = 1 + int(batch.tokens[0, 0])
        shares = np.bincount(gold, minlength=2) / len(gold)
        return Measured(losses, np.append(shares - 0.5, words).astype(np.float16))

    def apply(self, values, scalars, at):
        assert values.part is not None
        values.part.own[:2] += np.float32(at.lr) * scalars[:2].astype(np.float32)
        values.part.own[2:] = float(scalars[2])
        values.sensitive[at.step % K] += np.float32(1e-3)


@dataclass(frozen=True)
class CountingOptions(Scheduled):
    lr: float = option(0.25, "Peak learning rate.", above=0)


SPEC = EstimatorSpec(
    name="counting",
    summary="which answer is more frequent",
    options=CountingOptions,
    make=lambda own, settings, shape, part: Counting(),
    steps=100,
    eval_every=20,
    part=lambda own, context: {"kind": KIND},
)
ASKED = {"seed": 2, "batch_size": 8, "estimator": "counting"}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The two lines: of the kind, and of the estimator that moves it."""
    monkeypatch.setitem(parts.KINDS, KIND, lambda bundle: Biases())
    monkeypatch.setitem(ESTIMATORS, SPEC.name, SPEC)
    monkeypatch.setitem(START.kinds, KIND, Biases())
    yield


@pytest.fixture
def whole(tmp_path):
    return tmp_path / "whole", run(tmp_path / "whole", settings=ASKED)


def test_it_tunes_and_what_is_evaluated_ships(tmp_path):
    with tuner(tmp_path, settings=ASKED) as live:
        list(live)
        tuned, best = live.tuned(), live.history.best
        assert live.values.part.own[:2].any()
    assert best is not None and tuned.values.part is not None
    found = evaluate(FakeEngine(K), TASK, HELD_OUT, tuned.values, START.bounds)
    assert found.loss == pytest.approx(best.loss, rel=1e-6)
    changed = Values(tuned.values.sensitive, Bias(tuned.values.part.own + np.float32([1, 0, 0, 0])))
    assert evaluate(FakeEngine(K), TASK, HELD_OUT, changed, START.bounds).loss != found.loss


def test_every_operation_on_a_journal_keeps_it(tmp_path):
    check_every_operation(tmp_path, tuner, START, ASKED)
    assert read_journal(tmp_path / "whole").header.part == {"kind": KIND}


def test_its_words_are_forgotten_and_the_rest_stays(whole):
    before = replay(whole[0], START).values.part.own
    forget(whole[0], START)
    after = replay(whole[0], START).values.part.own
    assert before[2:].all() and not after[2:].any() and (before[:2] == after[:2]).all()


def test_it_goes_through_a_values_file(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    values = Values(bundle.values.astype(np.float32), Bias(np.float32([1, 2, 3, 4])))
    export_values(tmp_path / "v", values, bundle, step=1)
    kinds = parts.kinds_of(bundle)
    assert load_values(tmp_path / "v", bundle, kinds).sha256 == values.sha256
    assert values.without_words().sha256 != values.sha256
    del kinds[KIND]
    with pytest.raises(BundleError, match="the bundle has nothing for a part of kind candidate-b"):
        load_values(tmp_path / "v", bundle, kinds)


def test_a_journal_with_a_part_that_is_not_there_is_refused_by_name(whole, monkeypatch):
    with pytest.raises(JournalError, match="nothing for a part of kind candidate-bias"):
        replay(whole[0], fake_start(K))
    monkeypatch.delitem(parts.KINDS, KIND)
    with pytest.raises(JournalError, match="a part of kind 'candidate-bias' is unknown; known: a"):
        replay(whole[0], START)

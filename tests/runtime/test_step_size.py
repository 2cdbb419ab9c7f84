"""The learning rate from trial steps, on functions whose best rate is known."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine, fake_start
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators import ESTIMATORS, make_estimator, settings_of
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.settings import Settings
from seedtune.runtime.tuning.step_size import SHARE, TRIALS, measure_step_size
from seedtune.runtime.tuning.tuner import Tuner
from tiny_run import SETTINGS, START, TRAIN, rates, run, suited, tuner

K = 256
VALUES = fake_start(K).values
SLOPE = np.random.default_rng(3).standard_normal(K)


def quadratic(curvature: float, *, scatter: float = 0.0):
    """Loss of batch ``number``: slopes differ from batch to batch by ``scatter``."""

    def losses(number, rows):
        own = SLOPE + scatter * np.random.default_rng(number).standard_normal(K)
        moved = (rows - VALUES).astype(np.float64)
        return 2 + moved @ own + 0.5 * curvature * np.square(moved).sum(axis=1)

    return losses


@dataclass(frozen=True)
class Seen:
    """A look at batch ``number``, whose mean loss under rows is ``loss(number, rows)``."""

    loss: Any
    number: int
    at_once: int

    def losses(self, rows):
        return self.loss(self.number, rows)[:, None]


def measured(loss, its: Settings, at_once: int = 2):
    make = partial(make_estimator, its)
    return measure_step_size(make, lambda number: Seen(loss, number, at_once), VALUES, its)


MEASURED = [name for name in ESTIMATORS if rates(name)]


def settings(name: str, **more) -> Settings:
    return settings_of({"estimator": name, "eps": 0.01, "lr": "auto", "seed": 4, **more})


@pytest.mark.parametrize("name", MEASURED)
def test_takes_its_share_of_the_rate_that_is_best_for_a_step(name):
    """Against a search over rates of what 200 other steps gain on average."""
    loss = quadratic(30.0)
    its = settings(name)
    found = measured(loss, its)
    rates = np.geomspace(0.1, 10, 81) * found.lr / SHARE
    gains = np.zeros(len(rates))
    for step in range(200):
        estimator = make_estimator(its)
        rows = np.empty((estimator.probes, K), dtype=np.float32)
        estimator.perturb(VALUES, rows, seed=9, step=step, eps=0.01)
        moved = np.zeros(K, dtype=np.float32)
        scalars = estimator.scalars(loss(0, rows)[:, None], eps=0.01)
        estimator.apply(Values(moved), scalars, seed=9, step=step, lr=1.0)
        gains -= loss(1, VALUES + rates[:, None] * moved)
    best = rates[gains.argmax()]
    assert best / 1.6 <= found.lr / SHARE <= best * 1.6
    assert found.slope > 0 and found.curvature > 0
    # The gain at the best rate is half of what the slope alone would give.
    assert np.isclose(2 * gains.max() / 200 + 4, best * found.slope, rtol=0.6)


def test_two_point_on_a_bowl_is_one_over_the_trace():
    found = measured(quadratic(30.0), settings("two-point"))
    assert np.isclose(found.lr, SHARE / (30.0 * K), rtol=0.06)  # two digits are kept


def test_more_seeds_allow_longer_steps_and_batches_that_differ_shorter_ones():
    name = "two-point"
    few, many = (measured(quadratic(30.0), settings(name, seeds=q)).lr for q in (2, 16))
    assert many > 4 * few
    noisy = measured(quadratic(30.0, scatter=2.0), settings(name, seeds=2))
    assert noisy.lr < 0.7 * few


def test_without_curvature_a_step_stays_where_the_loss_was_seen():
    for curvature in (0.0, -1.0):
        found = measured(quadratic(curvature), settings("two-point"))
        assert np.isclose(found.lr * found.length, SHARE * 0.01, rtol=0.06)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_it_is_deterministic_and_counts_its_forwards(name, at_once):
    forwards = 0

    def counted(number, rows):
        nonlocal forwards
        forwards += len(rows)
        return quadratic(30.0)(number, rows)

    found = measured(counted, settings(name), at_once)
    assert found.forwards == forwards == TRIALS * (make_estimator(settings(name)).probes + 3)
    assert measured(quadratic(30.0), settings(name)) == found


def test_no_descent_and_losses_that_are_not_finite_are_errors():
    def opposed(number, rows):
        moved = (rows - VALUES).astype(np.float64)
        return moved @ SLOPE * (-1) ** number

    with pytest.raises(TuningError, match=r"lr 'auto' found no descent: .*; raise batch_size"):
        measured(opposed, settings("two-point"))
    with pytest.raises(TuningError, match="not finite near the start"):
        measured(lambda n, r: np.full(len(r), np.nan), settings("two-point"))


@pytest.mark.parametrize("estimator", MEASURED)
def test_a_run_with_lr_auto_measures_and_journals_it(tmp_path, estimator):
    auto = suited(estimator, lr="auto", steps=30)
    with tuner(tmp_path, settings=auto) as live:
        found = live.step_size
        list(live)
        first, last = live.history.evaluations[0], live.history.evaluations[-1]
        assert last.loss < first.loss
    header = read_journal(tmp_path).header
    assert header.settings["lr"] == found.lr == live.history.settings.options.lr
    assert header.extra["step_size"] == found.to_dict()
    engine = FakeEngine(64)
    with tuner(tmp_path, settings=auto, engine=engine) as live:
        assert live.step_size is None and engine.calls == []
    given = auto | {"lr": found.lr}
    assert run(tmp_path / "given", settings=given) == replay(tmp_path, START).sha256


def test_eps_is_chosen_first(tmp_path):
    with tuner(tmp_path, settings=(SETTINGS | {"lr": "auto", "eps": "auto", "steps": 1})) as live:
        assert live.history.settings.options.eps == live.loss_noise.eps
        with pytest.raises(
            TuningError, match="setting lr is 'auto': it is measured when a run starts"
        ):
            settings("two-point", steps=5).learning_rate(0)


def test_of_few_examples_the_descent_is_seen_on_others(tmp_path, monkeypatch):
    drawn = {}
    plain = Tuner._batch

    def watched(self, settings, number):
        found = plain(self, settings, number)
        drawn.setdefault(number, {id(example) for example in found})
        return found

    monkeypatch.setattr(Tuner, "_batch", watched)
    settings = SETTINGS | {"lr": "auto", "batch_size": 8}
    with tuner(tmp_path, settings=settings, train=TRAIN[:12]) as live:
        assert live.history.settings.batch_size == 8
    assert len(drawn) == 16
    for number in range(0, 16, 2):
        assert len(drawn[number]) == 6 and not drawn[number] & drawn[number + 1]

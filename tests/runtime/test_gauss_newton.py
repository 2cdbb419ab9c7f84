"""Gauss-Newton: it solves what it should, and learns where a random direction would not."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import fake_basis
from hypothesis import given, settings
from hypothesis import strategies as st
from seedtune.runtime.bundle.basis import Basis
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators import with_defaults
from seedtune.runtime.estimators.gauss_newton import RIDGE, GaussNewton, solve
from seedtune.runtime.journal.format import Header, Skip, Step
from seedtune.runtime.journal.history import History
from seedtune.runtime.settings import Settings
from seedtune.runtime.tuning.guards import RUNAWAY, judge_scalars
from tiny_run import START, TRAIN, K, tuner

KEY = {"seed": 0, "step": 0}


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 40), st.floats(0.1, 30))
@settings(deadline=None)
def test_the_solution_is_stationary_whatever_the_scale(seed, size, examples, scale):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((examples, size + 1)).astype(np.float32)
    rows[:, 1:] *= np.float32(scale)
    found = solve(rows, np.zeros(size))
    logit, sensitivity = rows[:, 0].astype(np.float64), rows[:, 1:].astype(np.float64)
    norm = np.sqrt(np.square(sensitivity).sum(axis=1).mean())
    wrong = 1 / (1 + np.exp(logit + sensitivity @ found))
    slope = RIDGE * found * norm - (sensitivity / norm).T @ wrong
    assert np.abs(slope).max() < 1e-3 * examples
    other = solve(rows, rng.standard_normal(size) / norm)
    assert np.allclose(found * norm, other * norm, atol=2e-2)


def test_nothing_that_reacts_moves_nothing():
    start = np.array([1.0, 2.0])
    assert (solve(np.zeros((3, 3), np.float32), start) == start).all()


def program(basis: Basis, seed: int, count: int):
    """Examples whose right answer's logit is linear in the values, and their losses."""
    rng = np.random.default_rng(seed)
    slopes = rng.standard_normal((count, basis.directions.shape[1])) / 40
    slopes += 0.05 * basis.directions[:4].mean(axis=0) / 40  # something to learn, in the basis
    origin = rng.standard_normal(count) - 0.5

    def losses(rows):
        return np.log1p(np.exp(-(origin + rows.astype(np.float64) @ slopes.T)))

    return losses


def test_few_steps_on_a_linear_program_reach_the_best_of_the_basis():
    basis = fake_basis(200)
    estimator = GaussNewton(basis, 16, 32)
    values = np.zeros(200, np.float32)
    held_out = program(basis, 99, 400)
    before = held_out(values[None]).mean()
    rows = np.empty((17, 200), np.float32)
    for step in range(6):
        estimator.perturb(values, rows, seed=0, step=step, eps=0.7)
        scalars = estimator.scalars(program(basis, step, 32)(rows), eps=0.7)
        assert scalars.dtype == np.float16 and scalars.shape == (estimator.scalar_count,)
        estimator.apply(values, scalars, seed=0, step=step, lr=1.0)
    assert estimator.state["rows"].shape == (6 * 32, 17)
    assert held_out(values[None]).mean() < 0.75 * before
    # Every example was seen through a linear program: its sensitivities are the slopes.
    along = np.concatenate(
        [np.zeros((1, 200), np.float32), basis.scales[:, None] * basis.directions]
    )
    logits = -np.log(np.expm1(program(basis, 0, 32)(along)))
    slopes = (logits[1:] - logits[0]).T
    assert np.abs(estimator.state["rows"][:32, 1:] - slopes).max() < 0.03 * np.abs(slopes).max()


def test_lr_shortens_the_step():
    basis = fake_basis(50)
    losses = program(basis, 1, 8)
    moved = []
    for lr in (1.0, 0.5):
        estimator = GaussNewton(basis, 16, 8)
        values = np.zeros(50, np.float32)
        rows = np.empty((17, 50), np.float32)
        estimator.perturb(values, rows, eps=0.7, **KEY)
        estimator.apply(values, estimator.scalars(losses(rows), eps=0.7), lr=lr, **KEY)
        moved.append(values)
    assert np.allclose(moved[0], 2 * moved[1], atol=1e-6)
    assert np.abs(moved[0]).max() > 0


def test_hopeless_and_certain_examples_stay_finite():
    estimator = GaussNewton(fake_basis(10), 2, 3)
    losses = np.array([[1e-30, 800.0, 0.7]] * 3)
    assert np.isfinite(estimator.scalars(losses, eps=0.7)).all()
    losses[1, 1] = np.nan
    assert not np.isfinite(estimator.scalars(losses, eps=0.7)).any()


GN = Settings(estimator="gauss-newton", lr="auto", steps=4, batch_size=8, eval_every=2)


def test_the_settings_fit_the_bundle_and_the_data_before_anything_is_written(tmp_path):
    with pytest.raises(TuningError, match="needs a bundle with directions"):
        tuner(tmp_path, settings=GN, start=replace(START, basis=None))
    start = replace(START, basis=fake_basis(K, 5))
    with pytest.raises(TuningError, match="directions is 6, the bundle has 5: lower it"):
        tuner(tmp_path, settings=replace(GN, directions=6), start=start)
    assert not any(tmp_path.iterdir())
    with tuner(tmp_path, settings=GN, start=start) as live:
        assert live.history.settings.directions == 5
    with tuner(tmp_path, settings=GN, start=start) as live:
        assert live.history.steps == 0


def test_fewer_examples_than_a_batch(tmp_path):
    start = replace(START, basis=fake_basis(K, 5))
    few = {"settings": GN, "start": start, "train": TRAIN[:6]}
    with tuner(tmp_path, **few) as live:
        live.step()
    with tuner(tmp_path, **few) as live:
        assert live.history.settings.batch_size == 6
        live.step()
    less = {**few, "train": TRAIN[:5], "settings": None, "allow_changes": True}
    with pytest.raises(TuningError, match="takes 6 training examples, 5 are given"):
        tuner(tmp_path, **less)
    with tuner(tmp_path, **few) as live:
        live.step()
        assert live.history.changes == []


def test_the_runaway_guard_looks_at_the_step_not_at_the_logits():
    settings = with_defaults(replace(GN, steps=100, directions=2))
    metric = {"name": "accuracy", "higher_is_better": True}
    header = Header("0" * 64, "0" * 64, 2, 26, settings.to_dict(), "0" * 64, None, metric)
    history = History(header, "here")
    for _ in range(20):
        history.add(Step((0.01, 0.01, *[10.0] * 24)))
    assert judge_scalars(np.array([0.02, 0.02, *[15.0] * 24], np.float16), history) is None
    skip = judge_scalars(np.array([0.2, 0.2, *[10.0] * 24], np.float16), history)
    assert skip == Skip(RUNAWAY)

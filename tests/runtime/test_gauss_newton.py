"""Gauss-Newton: it solves what it should, and learns where a random direction would not."""

import numpy as np
import pytest
from fakes import fake_basis
from hypothesis import given, settings
from hypothesis import strategies as st
from seedtune.runtime.basis import Basis
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators.gauss_newton import RIDGE, GaussNewton, solve

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
    # Every example was seen through the same linear program: their sensitivities are exact.
    reach = basis.scales[:, None] * basis.directions
    exact = (program(basis, 0, 32)(reach) != 0).all()
    assert exact


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


def test_without_enough_directions():
    values, rows = np.zeros(10, np.float32), np.zeros((2, 10), np.float32)
    with pytest.raises(TuningError, match="needs a bundle with directions"):
        GaussNewton(None, 16, 4).perturb(values, rows, eps=0.7, **KEY)
    with pytest.raises(TuningError, match="directions is 17, the bundle has 16: lower it"):
        GaussNewton(fake_basis(10), 17, 4).perturb(values, rows, eps=0.7, **KEY)

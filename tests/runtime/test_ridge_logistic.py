"""Logistic regression with a ridge and an offset: it solves what it states."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ridge_problems import SHAPES, objective_slope, problem, standardised
from seedtune.runtime.estimators.ridge_logistic import (
    FOLDS,
    RIDGES,
    SHARES,
    Choice,
    Examples,
    choose,
    fit,
    scores,
)

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([*SHAPES.values()])


def zeros(seen, rows):
    return np.zeros((rows, seen.features.shape[2]), np.float32)


def mean_loss(seen, weights):
    found = scores(seen, weights).astype(np.float64)
    right = np.take_along_axis(found, seen.gold[:, None], axis=1)[:, 0]
    return float((np.logaddexp.reduce(found, axis=1) - right).mean())


def objective(seen, ridge, weights):
    """What ``fit`` states that it minimises."""
    _, own = standardised(seen, weights)
    return len(seen.gold) * mean_loss(seen, weights) + ridge / 2 * float(np.square(own).sum())


@given(seeds, shapes, st.floats(0.05, 15), st.integers(10, 60), st.integers(1, 30))
@settings(deadline=None)
def test_fits_that_go_on_from_the_last_come_to_rest_where_the_first_nearly_was(
    seed, shape, ridge, count, width
):
    seen = problem(seed, *shape, count=count, width=width)
    start = zeros(seen, shape[1])
    first = found = fit(seen, ridge, start)
    assert found.dtype == np.float32 and found.shape == start.shape
    for _ in range(12):
        found = fit(seen, ridge, found)
    slope = objective_slope(seen, ridge, found)
    assert np.abs(slope).max() < 0.002 * max(1, np.abs(objective_slope(seen, ridge, start)).max())
    assert mean_loss(seen, first) < mean_loss(seen, start)
    apart = objective(seen, ridge, first) - objective(seen, ridge, found)
    assert -1e-5 * count < apart < 2e-3 * count


@given(seeds, shapes, st.integers(-20, 20))
@settings(deadline=None)
def test_shifted_and_scaled_features_give_the_same_scores(seed, shape, power):
    """Also with a scale of its own for each feature."""
    seen = problem(seed, *shape)
    rng = np.random.default_rng(seed)
    width = seen.features.shape[2] - 1
    moved = seen.features.copy()
    moved[:, :, :-1] *= (rng.uniform(0.5, 2, width) * 2.0**power).astype(np.float32)
    moved[:, :, :-1] += (rng.standard_normal(width) * 2.0**power).astype(np.float32)
    other = Examples(seen.offset, moved, seen.gold)
    plain, found = (fit(each, 0.5, zeros(each, shape[1])) for each in (seen, other))
    assert np.allclose(scores(seen, plain), scores(other, found), atol=0.01)


@given(seeds, shapes, st.integers(-1000, 1000))
@settings(deadline=None)
def test_a_constant_in_all_scores_of_an_example_changes_nothing(seed, shape, constant):
    seen = problem(seed, *shape)
    higher = Examples(seen.offset + np.float32(constant), seen.features, seen.gold)
    plain, found = (fit(each, 0.5, zeros(each, shape[1])) for each in (seen, higher))
    assert np.allclose(plain, found, atol=0.02)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_infinite_ridge_gives_zeros(shape):
    seen = problem(0, *shape)
    start = np.ones_like(zeros(seen, shape[1]))
    assert (fit(seen, float("inf"), start) == 0).all()


def test_a_heavier_ridge_gives_smaller_scores():
    seen = problem(1, 3, 3)
    size = [np.abs(fit(seen, ridge, zeros(seen, 3))[:, :-1]).sum() for ridge in RIDGES]
    assert size == sorted(size, reverse=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_features_that_never_vary_are_no_trouble(shape):
    seen = problem(2, *shape)
    seen.features[:, :, 3] = 7
    found = fit(seen, 0.5, zeros(seen, shape[1]))
    assert np.isfinite(found).all()
    seen.features[:, :, :-1] = 7
    assert np.isfinite(fit(seen, 0.5, zeros(seen, shape[1]))).all()


@given(seeds, shapes)
@settings(deadline=None)
def test_features_that_come_with_every_answer_ask_for_no_readout(seed, shape):
    answers, rows = shape
    features = np.repeat(problem(seed, *shape, count=20).features, answers, axis=0)
    gold = np.tile(np.arange(answers), 20)
    seen = Examples(np.zeros((len(gold), answers), np.float32), features, gold)
    assert choose(seen, zeros(seen, rows), SHARES) == Choice(float("inf"), 1.0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_noise_beside_an_offset_that_says_it_all_asks_for_no_readout_but_by_chance(shape):
    answers, rows = shape
    chosen = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        offset = (3 * rng.standard_normal((200, answers))).astype(np.float32)
        gold = (offset + rng.gumbel(size=offset.shape)).argmax(axis=1)
        noise = problem(seed, *shape, count=200, width=30).features
        seen = Examples(offset, noise, gold)
        chosen.append(choose(seen, zeros(seen, rows), SHARES).ridge)
    assert np.isinf(chosen).mean() > 0.75 and min(chosen) >= 1.5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_answer_that_the_features_tell_asks_for_a_light_ridge(shape):
    answers, rows = shape
    gold = np.arange(60) % answers
    features = problem(3, *shape, count=60).features
    if rows == 1:
        features[:, :, 0] = 4.0 * (np.arange(answers) == gold[:, None])
    else:
        features[:, 0, :answers] = 4.0 * (np.arange(answers) == gold[:, None])
    seen = Examples(np.zeros((60, answers), np.float32), features, gold)
    ridge = choose(seen, zeros(seen, rows), SHARES).ridge
    assert ridge == min(RIDGES)
    assert (scores(seen, fit(seen, ridge, zeros(seen, rows))).argmax(axis=1) == gold).all()


def test_what_says_little_of_each_of_many_examples_is_read():
    """Its gain is far less than what it scatters by, and sure all the same."""
    seen, rng = problem(7, 2, 2, count=600), np.random.default_rng(8)
    feature = seen.features[:, 0, 0]
    told = (feature - feature.mean()) / feature.std()
    gold = (rng.random(600) < 1 / (1 + np.exp(-told))).astype(np.int64)
    weak = Examples(np.zeros_like(seen.offset), seen.features, gold)
    assert np.isfinite(choose(weak, zeros(weak, 2), ()).ridge)


@pytest.mark.parametrize("count", range(1, FOLDS + 2))
def test_a_ridge_can_be_chosen_from_few_examples(count):
    seen = problem(4, 2, 2, count=count)
    ridge = choose(seen, zeros(seen, 2), SHARES).ridge
    assert ridge in (*RIDGES, float("inf"))
    if count == 1:
        assert ridge == float("inf")  # nothing to hold out


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_offset_that_misleads_is_left_out_and_one_that_tells_is_kept(shape):
    """Both beside features that tell the answer, of which the offset says more or nothing."""
    rows = shape[1]
    seen = problem(5, *shape, count=300)
    wrong = np.random.default_rng(6).permutation(seen.offset * 4)
    assert choose(seen, zeros(seen, rows), SHARES).share == 1
    misled = Examples(wrong, seen.features, seen.gold)
    found = choose(misled, zeros(seen, rows), SHARES)
    assert found.share == 0
    assert choose(misled, zeros(seen, rows), ()) == found._replace(share=1.0)
    fitted = [
        fit(misled.of_share(share), found.ridge, zeros(seen, rows)) for share in (found.share, 1)
    ]
    apart = [
        mean_loss(misled.of_share(share), own) for share, own in zip((0, 1), fitted, strict=True)
    ]
    assert apart[0] < apart[1]

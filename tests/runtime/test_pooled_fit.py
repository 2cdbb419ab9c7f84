"""The fit to rows of many devices is that to all of them in one place."""

from dataclasses import replace

import numpy as np
import pytest
from ridge_problems import SHAPES, objective_slope, problem, standardised
from seedtune.runtime.estimators.pooled_fit import (
    PooledFit,
    Sent,
    losses_and_gradients,
    summarise,
)
from seedtune.runtime.estimators.private_fit import PrivateFit, Reference, mean_gradient
from seedtune.runtime.estimators.ridge_logistic import Examples, scores

RIDGE, ROUNDS = 0.05, 12


def parts(seen, sizes):
    """Devices of so many rows, sorted by answer first: some have but one."""
    order = np.argsort(seen.gold, kind="stable")
    found = np.split(order, np.cumsum(sizes)[:-1])
    return [Examples(seen.offset[n], seen.features[n], seen.gold[n]) for n in found]


def pooled(devices, rows, rounds=ROUNDS):
    answers, width = devices[0].offset.shape[1], devices[0].features.shape[2] - 1
    fit = PooledFit(rows, width, answers, RIDGE)
    sent = [Sent(summarise(each)) for each in devices]
    for _ in range(rounds):
        for each, own in zip(devices, sent, strict=True):
            own.add(*losses_and_gradients(each, own.summary.mean, fit.points[-1][None]))
            assert own.contradiction(fit.points, answers // rows) is None
        fit.advance(sent)
    return fit


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_the_fit_to_all_rows(shape):
    """In the minimum the gradient is zero, and the penalty bounds how far from it a point is."""
    seen = problem(3, *shape, count=230, width=60)
    devices = parts(seen, (61, 20, 3, 90, 55, 1))
    fit = pooled(devices, shape[1])
    ridge = RIDGE * 230
    slope = objective_slope(seen, ridge, fit.points[-1].astype(np.float64))
    _, own = standardised(seen, fit.points[-1].astype(np.float64))
    assert np.linalg.norm(slope) / ridge <= 1e-5 * np.linalg.norm(own)


def test_a_feature_far_from_zero_costs_no_digits():
    seen = problem(4, 2, 2, count=200, width=20)
    seen.features[:, :, 1] = 7  # never varies
    far = seen.features.copy()
    far[:, :, 0] += 3000
    near, found = (
        pooled(parts(each, (100, 60, 40)), 2).points[-1][:, :-1]
        for each in (seen, replace(seen, features=far))
    )
    assert np.linalg.norm(found - near) < 1e-3 * np.linalg.norm(near)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda losses, gradients: (losses, gradients * 1000), "longer than"),
        (lambda losses, gradients: (losses, -gradients), "contradict"),
        (lambda losses, gradients: (losses - 1000, gradients), "below zero"),
        (lambda losses, gradients: (losses * 0.5, gradients), "contradict"),
    ],
)
def test_what_no_rows_can_give_is_seen(lie, said):
    seen = problem(5, 2, 2, count=80, width=12)
    fit = pooled(parts(seen, (40, 40)), 2, rounds=3)
    own = summarise(seen)
    losses, gradients = losses_and_gradients(seen, own.mean, np.stack(fit.points))
    honest = Sent(own)
    honest.add(losses, gradients)
    assert honest.contradiction(fit.points) is None
    liar = Sent(own)
    told, slopes = lie(losses, gradients)
    mixed = losses.copy()
    mixed[-1], gradients[:-1] = told[-1], gradients[:-1]
    liar.add(mixed, np.concatenate([gradients[:-1], slopes[-1:]]))
    assert said in str(liar.contradiction(fit.points))


def test_one_mean_gradient_is_nearly_discriminant_analysis():
    seen = problem(6, 2, 2, count=400, width=12)
    fit = PrivateFit(2, 2, Reference.of(seen.features[:100, 0, :-1]))
    place = fit.reference.mean, fit.reference.scale, fit.weights
    gradients = [mean_gradient(each, *place) for each in parts(seen, (100, 200, 100))]
    mean = mean_gradient(seen, *place)
    twice = Examples(
        *(np.repeat(each, 2, axis=0) for each in (seen.offset, seen.features, seen.gold))
    )
    np.testing.assert_allclose(mean_gradient(twice, *place), mean, atol=1e-9)
    fit.advance(np.mean(gradients, axis=0))
    learned = replace(seen, offset=np.zeros_like(seen.offset))
    assert (scores(learned, fit.raw_weights).argmax(axis=1) == seen.gold).mean() > 0.75

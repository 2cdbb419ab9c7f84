"""Noise of each group's own: what it measures, what it moves, and that it tells more of a batch."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import BOUNDS, fake_context, noise_vector
from seedtune.runtime.bundle import Layer
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators import StepContext, complete, make_estimator
from seedtune.runtime.estimators.per_example import KEPT, SPEC, PerExample, PerExampleOptions
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.values import Values
from tiny_bundle import write_tiny_bundle
from tiny_run import ENGINE, SETTINGS, START, TASK, TRAIN, K, tuner

KEY = {"seed": 11, "step": 4}
EPS = 1e-3


def look(examples=16):
    return Look(ENGINE, TASK, BOUNDS, TRAIN[:examples])


def made(groups, batch=16, first=0, last=K):
    return PerExample(groups, batch, first, last)


@pytest.mark.parametrize("groups", [1, 5, 8, 16])
def test_each_group_is_measured_along_its_own_noise(groups):
    """Against the losses of its examples alone, perturbed by hand; the rest of the values stay."""
    estimator = made(groups, first=10, last=50)
    measured = estimator.measure(look(), Values(START.values), StepContext(eps=EPS, **KEY))
    assert measured.losses.shape == (2, 16) and measured.scalars.shape == (groups,)
    for group in range(groups):
        numbers = [n for n in range(16) if n * groups // 16 == group]
        assert numbers, "no group is empty"
        z = np.zeros(K, np.float32)
        z[10:50] = noise_vector(40, probe=group, **KEY)
        rows = np.stack([START.values + np.float32(EPS) * z, START.values - np.float32(EPS) * z])
        wanted = look().part(numbers).losses(rows)
        np.testing.assert_array_equal(measured.losses[:, numbers], wanted)
        slope = (wanted[0] - wanted[1]).mean() / (2 * EPS)
        assert np.isclose(float(measured.scalars[group]), slope, rtol=2e-3, atol=1e-4)


def test_a_step_moves_by_lr_whatever_the_scale_of_the_loss():
    """Doubled scalars give the same step, to the bit, the running mean square included."""
    ends = []
    for scale in (1.0, 2.0):
        estimator, values = made(4, first=8, last=60), START.values.copy()
        for step, scalars in enumerate(([1, -2, 3, 0.5], [0.25, 0.5, -1, 2])):
            stored = np.float16(scale) * np.array(scalars, np.float16)
            estimator.apply(Values(values), stored, StepContext(1, step, lr=0.1))
        assert (values[:8] == START.values[:8]).all() and (values[60:] == START.values[60:]).all()
        ends.append(values)
    assert (ends[0] == ends[1]).all()
    first = np.mean(np.square([1, -2, 3, 0.5]))
    second = np.mean(np.square([0.25, 0.5, -1, 2]))
    wanted = 4 * (KEPT * first + (1 - KEPT) * second)
    assert np.isclose(estimator.state["mean_square"][0], wanted)


def test_nothing_moves_where_no_loss_reacts():
    values = START.values.copy()
    made(4).apply(Values(values), np.zeros(4, np.float16), StepContext(1, 0, lr=0.1))
    assert (values == START.values).all()


def test_it_tells_more_of_the_gradient_than_shared_noise_for_the_same_forwards():
    """Cosine of the mean of 40 estimates with the gradient by differences."""
    slope = np.empty(K)
    for place in range(K):
        rows = np.repeat(START.values[None], 2, axis=0)
        rows[:, place] += np.array([EPS, -EPS], np.float32)
        up, down = look().mean_losses(rows)
        slope[place] = (up - down) / (2 * EPS)
    found = {}
    for groups in (1, 16):
        total = np.zeros(K)
        for step in range(40):
            values = Values(START.values)
            scalars = made(groups).measure(look(), values, StepContext(3, step, EPS)).scalars
            for group, scalar in enumerate(scalars):
                total += float(scalar) * noise_vector(K, seed=3, step=step, probe=group)
        found[groups] = total @ slope / np.linalg.norm(total) / np.linalg.norm(slope)
    assert found[16] > found[1] + 0.05, found


def test_settings_and_values_that_a_run_takes():
    context = replace(fake_context(ENGINE, TASK, 40), blocks=np.arange(K) // 4, block_count=16)
    its = complete({"estimator": SPEC.name}, context)
    assert (its.batch_size, its.options.groups) == (16, 8)  # two answers: pairs
    assert its.options == PerExampleOptions(groups=8)
    assert complete({"estimator": SPEC.name, "lr": "auto", "eps": "auto"}, context) == its
    few = complete({"estimator": SPEC.name, "batch_size": 64}, replace(context, answers=0))
    assert (few.batch_size, few.options.groups) == (40, 40)  # nothing to choose: each for itself
    shape = SPEC.shape(its.options, context)
    assert shape == {"first": 4 * 4, "last": 11 * 4}  # blocks 4 to 10 of 16
    assert SPEC.shape(its.options, replace(context, blocks=None)) == {"first": 0, "last": K}
    assert make_estimator(its, shape).scalar_count == 8
    for wrong in (None, {"first": 3}, {"first": 3, "last": 3}, {"rows": 1, "last": 2}):
        with pytest.raises(ValueError, match=r"values|needs a shape"):
            make_estimator(its, wrong)


def test_blocks_come_from_the_names_of_the_matrices(tmp_path):
    def blocks(*names):
        shapes = ((4, 6), 0, 5), ((2, 8), 5, 7)
        layers = [Layer(name, *rest) for name, rest in zip(names, shapes, strict=True)]
        return write_tiny_bundle(tmp_path / names[0], layers=layers).blocks()

    assert (blocks("model.layers.3.q", "model.layers.12.q") == [3] * 5 + [12] * 7).all()
    assert blocks("model.layers.3.k", "lm_head") is None
    assert blocks("model.layers.4.q", "model.layers.2.q") is None


def test_a_run_learns_and_keeps_its_batch_size(tmp_path):
    settings = {**SETTINGS, "estimator": SPEC.name, "lr": 0.1}
    with tuner(tmp_path, settings=settings) as live:
        list(live)
        evaluations = live.history.evaluations
    assert evaluations[-1].loss < evaluations[0].loss - 0.05
    with pytest.raises(TuningError, match="batch_size"):
        tuner(tmp_path, settings=(settings | {"batch_size": 4}), allow_changes=True)

"""Estimators: the arithmetic of a step, to the bit."""

import numpy as np
import pytest
from fakes import noise_vector
from hypothesis import given
from hypothesis import strategies as st
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators import (
    ESTIMATORS,
    Ground,
    complete,
    facts_of,
    make_estimator,
    with_defaults,
)
from seedtune.runtime.estimators.two_point import TwoPoint
from seedtune.runtime.settings import NOISE_KINDS, Settings

KEY = {"seed": 11, "step": 4}
K = 64
PERTURBING = [name for name, facts in ESTIMATORS.items() if facts.directions]


def alone(losses):
    """Losses of probes as those of a batch of one example."""
    return losses[:, None]


def made(name: str, entries: int = K, **settings) -> TwoPoint:
    its = Settings(estimator=name, batch_size=1, **settings)
    estimator = make_estimator(its)
    assert isinstance(estimator, TwoPoint)
    return estimator


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_two_point_is_algorithm_1_of_mezo(kind):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1001).astype(np.float32)
    slope = rng.standard_normal(1001)
    estimator = made("two-point", noise=kind)
    rows = np.empty((estimator.probes, 1001), dtype=np.float32)
    estimator.perturb(values, rows, eps=0.01, **KEY)
    z = noise_vector(1001, kind=kind, **KEY)
    assert (rows[0] == values + np.float32(0.01) * z).all()
    assert (rows[1] == values - np.float32(0.01) * z).all()
    scalars = estimator.scalars(alone(rows.astype(np.float64) @ slope), eps=0.01)
    assert scalars.dtype == np.float16 and scalars.shape == (estimator.scalar_count,)
    assert np.isclose(float(scalars[0]), slope @ z, rtol=2e-3)  # half an ulp of float16 and eps's
    before = values.copy()
    estimator.apply(values, scalars, lr=0.05, **KEY)
    assert (values == before + np.float32(-0.05 * float(scalars[0])) * z).all()


@pytest.mark.parametrize("losses", [(1e9, 0.0), (np.inf, 1.0), (np.nan, 1.0), (np.inf, np.inf)])
def test_two_point_scalars_beyond_float16_are_not_finite(losses):
    scalars = made("two-point").scalars(alone(np.array(losses)), eps=1e-2)
    assert not np.isfinite(scalars).any()


@pytest.mark.parametrize("name", PERTURBING)
def test_apply_depends_on_its_arguments_alone(name):
    """Two fresh estimators, one of which has also perturbed, end in the same bits."""
    ends = []
    for live in (True, False):
        estimator = made(name, 100)
        values = np.ones(100, dtype=np.float32)
        rows = np.empty((estimator.probes, 100), dtype=np.float32)
        for step in range(5):
            if live:
                estimator.perturb(values, rows, seed=1, step=step, eps=0.1)
                estimator.scalars(alone(np.arange(estimator.probes, dtype=np.float64)), eps=0.1)
            scalars = np.arange(estimator.scalar_count, dtype=np.float16) + np.float16(step + 0.5)
            estimator.apply(values, scalars, seed=1, step=step, lr=0.01)
        ends.append(values.tobytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", PERTURBING)
@given(directions=st.integers(2, 5), at_once=st.integers(1, 11), step=st.integers(0, 2**40))
def test_rows_are_the_same_however_they_are_grouped(name, directions, at_once, step):
    estimator = made(name, 70, directions=directions)
    values = np.linspace(-1, 1, 70, dtype=np.float32)
    whole = np.empty((estimator.probes, 70), dtype=np.float32)
    key = {"seed": 8, "step": step, "eps": 0.03}
    estimator.perturb(values, whole, **key)
    for first in range(0, estimator.probes, at_once):
        rows = np.full_like(whole[first : first + at_once], np.nan)
        estimator.perturb(values, rows, first=first, **key)
        assert (rows == whole[first : first + at_once]).all()
    assert len(np.unique(whole, axis=0)) == estimator.probes


@pytest.mark.parametrize("name", ["two-point"])
@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_estimates_are_unbiased_on_a_quadratic(name, kind):
    """The mean step over many seeds is the gradient, within four of its standard errors."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal(12).astype(np.float32)
    root = rng.standard_normal((12, 12))
    curvature = root @ root.T / 12
    slope = rng.standard_normal(12)
    estimator = made(name, noise=kind, directions=3)
    rows = np.empty((estimator.probes, 12), dtype=np.float32)
    found = []
    for step in range(4000):
        estimator.perturb(values, rows, seed=0, step=step, eps=0.05)
        exact = rows.astype(np.float64)
        losses = 0.5 * np.einsum("pk,kl,pl->p", exact, curvature, exact) + exact @ slope
        moved = np.zeros(12, dtype=np.float32)
        scalars = estimator.scalars(alone(losses), eps=0.05)
        estimator.apply(moved, scalars, seed=0, step=step, lr=1.0)
        found.append(-moved)
    error = np.mean(found, axis=0) - (curvature @ values + slope)
    deviation = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(error) < 4 * deviation).all()


@pytest.mark.parametrize("name", PERTURBING)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_any_loss_that_is_not_sound_makes_a_scalar_that_is_not_finite(name, bad):
    estimator = made(name, directions=2)
    for probe in range(estimator.probes):
        losses = np.linspace(1, 2, estimator.probes)
        losses[probe] = bad
        scalars = estimator.scalars(alone(losses), eps=1e-2)
        assert not np.isfinite(scalars).all()


def test_each_estimator_has_its_own_number_of_directions():
    usual = {"readout": 0, "text-head": 0, "per-example": 0, "two-point": 1}
    assert usual.keys() == ESTIMATORS.keys()
    for name, directions in usual.items():
        for left in (None, 0):
            its = Settings(estimator=name, directions=left)
            assert with_defaults(its).directions == directions
    with pytest.raises(TuningError, match="directions=3 must be 0 for readout"):
        facts_of(Settings(estimator="readout", directions=3))


ANYTHING = Ground(
    answers=2,
    head_rows=2,
    hidden_width=6,
    examples=64,
    entries=K,
    writes=True,
    text_head=(4, 6),
)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_is_left_open_is_the_estimator_s_own_choice_and_no_more(name):
    facts = ESTIMATORS[name]
    found = complete(Settings(estimator=name), ANYTHING)
    assert None not in found.to_dict().values()
    assert (found.lr, found.eps, found.eval_every) == (facts.lr, facts.eps, facts.eval_every)
    said = {"lr": 0.5, "eps": 0.25, "steps": 3, "eval_every": 0, "batch_size": 4}
    asked = {field: value for field, value in said.items() if field not in facts.ignores}
    found = complete(Settings(estimator=name, **asked), ANYTHING).to_dict()
    assert {field: found[field] for field in asked} == asked
    for field in set(said) - set(asked):
        with pytest.raises(TuningError, match=f"{field}={said[field]} means nothing to .*{name}"):
            complete(Settings(estimator=name, **{field: said[field]}), ANYTHING)
    auto = complete(Settings(estimator=name, lr="auto", eps="auto"), ANYTHING)
    measured = ("auto", "auto")
    assert (auto.lr, auto.eps) == ((facts.lr, facts.eps) if facts.own_rates else measured)


def test_an_estimator_that_there_is_not_is_refused_by_name():
    for settings in (Settings(estimator="adam"), Settings(estimator="")):
        with pytest.raises(TuningError, match=r"estimator='(adam)?' must be one of readout, "):
            complete(settings, ANYTHING)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("steps", 0),
        ("steps", 1.5),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", "large"),
        ("lr", True),
        ("eps", 0.0),
        ("eps", "small"),
        ("schedule", "step"),
        ("warmup", -1),
        ("eval_every", -1),
        ("noise", "uniform"),
        ("estimator", 3),
        ("directions", -1),
        ("directions", 1 << 16),
        ("directions", 2.0),
        ("best_by", "luck"),
        ("loss_jump", 0.0),
        ("scalar_jump", 1.0),
        ("max_skips", 0),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(TuningError, match=f"setting {field}="):
        Settings(**{field: value})


def test_settings_survive_the_way_to_json_and_refuse_unknown_fields():
    settings = Settings(lr=0.1, eps=0.2, schedule="cosine")
    assert Settings.from_dict(settings.to_dict()) == settings
    with pytest.raises(TuningError, match="'adam'"):
        Settings.from_dict({**settings.to_dict(), "adam": 0.9})


def test_learning_rate_schedules():
    steps = np.arange(100)
    for schedule, shape in {
        "constant": np.ones(100),
        "linear": 1 - (steps - 10) / 90,
        "cosine": 0.5 * (1 + np.cos(np.pi * (steps - 10) / 90)),
    }.items():
        settings = Settings(lr=3.0, steps=100, warmup=10, schedule=schedule)
        found = [settings.learning_rate(step) for step in range(100)]
        wanted = np.where(steps < 10, (steps + 1) / 10, shape)
        assert np.allclose(found, 3.0 * wanted, rtol=0, atol=1e-14)
        assert settings.learning_rate(1000) >= 0


@pytest.mark.parametrize("name", PERTURBING)
def test_the_stated_forwards_are_those_of_the_estimator(name):
    for directions in (ESTIMATORS[name].least_directions, 5):
        estimator = made(name, directions=directions)
        assert ESTIMATORS[name].forwards(directions) == estimator.probes

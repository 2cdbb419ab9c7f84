"""Estimators: the arithmetic of a step, to the bit."""

import json

import numpy as np
import pytest
from fakes import fake_kinds, noise_vector
from hypothesis import given
from hypothesis import strategies as st
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators import (
    ESTIMATORS,
    RunContext,
    StepContext,
    complete,
    make_estimator,
    settings_of,
    stored_settings,
)
from seedtune.runtime.estimators.two_point import TwoPoint
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.settings import Settings, options_of

KEY = {"seed": 11, "step": 4}
K = 64


def alone(losses):
    """Losses of probes as those of a batch of one example."""
    return losses[:, None]


def made(**settings):
    asked = {"estimator": "two-point", "batch_size": 1, **settings}
    estimator = make_estimator(settings_of(asked))
    assert isinstance(estimator, TwoPoint)
    return estimator


def test_two_point_is_algorithm_1_of_mezo():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1001).astype(np.float32)
    slope = rng.standard_normal(1001)
    estimator = made()
    rows = np.empty((estimator.probes, 1001), dtype=np.float32)
    estimator.perturb(values, rows, StepContext(eps=0.01, **KEY))
    z = noise_vector(1001, **KEY)
    assert (rows[0] == values + np.float32(0.01) * z).all()
    assert (rows[1] == values - np.float32(0.01) * z).all()
    scalars = estimator.scalars(alone(rows.astype(np.float64) @ slope), eps=0.01)
    assert scalars.dtype == np.float16 and scalars.shape == (estimator.scalar_count,)
    assert np.isclose(float(scalars[0]), slope @ z, rtol=2e-3)  # half an ulp of float16 and eps's
    before = values.copy()
    estimator.apply(Values(values), scalars, StepContext(lr=0.05, **KEY))
    assert (values == before + np.float32(-0.05 * float(scalars[0])) * z).all()


@given(seeds=st.integers(2, 5), at_once=st.integers(1, 11), step=st.integers(0, 2**40))
def test_rows_are_the_same_however_they_are_grouped(seeds, at_once, step):
    estimator = made(seeds=seeds)
    values = np.linspace(-1, 1, 70, dtype=np.float32)
    whole = np.empty((estimator.probes, 70), dtype=np.float32)
    at = StepContext(8, step, 0.03)
    estimator.perturb(values, whole, at)
    for first in range(0, estimator.probes, at_once):
        rows = np.full_like(whole[first : first + at_once], np.nan)
        estimator.perturb(values, rows, at, first)
        assert (rows == whole[first : first + at_once]).all()
    assert len(np.unique(whole, axis=0)) == estimator.probes


def test_estimates_are_unbiased_on_a_quadratic():
    """The mean step over many seeds is the gradient, within four of its standard errors."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal(12).astype(np.float32)
    root = rng.standard_normal((12, 12))
    curvature = root @ root.T / 12
    slope = rng.standard_normal(12)
    estimator = made(seeds=3)
    rows = np.empty((estimator.probes, 12), dtype=np.float32)
    found = []
    for step in range(4000):
        estimator.perturb(values, rows, StepContext(0, step, 0.05))
        exact = rows.astype(np.float64)
        losses = 0.5 * np.einsum("pk,kl,pl->p", exact, curvature, exact) + exact @ slope
        moved = np.zeros(12, dtype=np.float32)
        scalars = estimator.scalars(alone(losses), eps=0.05)
        estimator.apply(Values(moved), scalars, StepContext(0, step, lr=1.0))
        found.append(-moved)
    error = np.mean(found, axis=0) - (curvature @ values + slope)
    deviation = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(error) < 4 * deviation).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_any_loss_that_is_not_sound_makes_a_scalar_that_is_not_finite(bad):
    estimator = made(seeds=2)
    for probe in range(estimator.probes):
        losses = np.linspace(1, 2, estimator.probes)
        losses[probe] = bad
        scalars = estimator.scalars(alone(losses), eps=1e-2)
        assert not np.isfinite(scalars).all()


ANYTHING = RunContext(
    answers=2,
    head_rows=2,
    hidden_width=6,
    examples=64,
    entries=K,
    writes=True,
    labels=("right", "left"),
    parts=fake_kinds(),
)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_is_left_open_is_the_estimator_s_own_choice_and_no_more(name):
    spec = ESTIMATORS[name]
    own = options_of(spec.options)
    found = complete({"estimator": name}, ANYTHING)
    left = dict.fromkeys((*options_of(Settings), *own), None)
    assert complete({**left, "estimator": name}, ANYTHING) == found
    assert None not in found.to_dict().values() and found.eval_every == spec.eval_every
    chosen = {option: one.default for option, one in own.items() if one.default is not None}
    assert chosen.items() <= found.to_dict().items()
    said = {"lr": 0.5, "eps": 0.25, "steps": 3, "eval_every": 0, "batch_size": 4}
    asked = {field: said[field] for field in said if field in {*options_of(Settings), *own}}
    found = complete({"estimator": name, **asked}, ANYTHING).to_dict()
    assert {field: found[field] for field in asked} == asked
    automatic = {field: "auto" for field in ("lr", "eps") if field in own}
    auto = complete({"estimator": name, **automatic}, ANYTHING).to_dict()
    for field in automatic:
        assert auto[field] == ("auto" if "auto" in own[field].words else own[field].default)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_option_of_another_is_refused_with_the_names_of_its_own(name):
    own = options_of(ESTIMATORS[name].options)
    others = {one for spec in ESTIMATORS.values() for one in options_of(spec.options)} - set(own)
    assert others
    for foreign in others:
        with pytest.raises(TuningError) as caught:
            complete({"estimator": name, foreign: 1}, ANYTHING)
        has = f"its options: {', '.join(own)}" if own else "it has no options"
        assert str(caught.value) == f"estimator {name} has no option {foreign!r}; {has}"


def test_no_option_has_the_name_of_a_setting_that_every_run_has():
    for spec in ESTIMATORS.values():
        assert not set(options_of(Settings)) & set(options_of(spec.options))


def test_an_estimator_that_there_is_not_is_refused_by_name():
    for name in ("adam", ""):
        with pytest.raises(TuningError, match=r"estimator='(adam)?' must be one of readout, "):
            complete({"estimator": name}, ANYTHING)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("steps", 0),
        ("steps", 1.5),
        ("steps", 2**47),  # directions from there on are those of the noise's measurement
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", "large"),
        ("lr", True),
        ("eps", 0.0),
        ("eps", "small"),
        ("schedule", "step"),
        ("eval_every", -1),
        ("seeds", 0),
        ("seeds", (1 << 16) + 1),
        ("seeds", 2.0),
        ("loss_jump", 0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(TuningError, match=f"setting {field}="):
        settings_of({"estimator": "two-point", field: value})


def test_settings_survive_the_way_to_json_and_refuse_unknown_fields():
    asked = {"lr": 0.1, "eps": 0.2, "schedule": "linear", "steps": 7, "eval_every": 0}
    settings = settings_of({"estimator": "two-point", **asked})
    fields = settings.to_dict()
    assert stored_settings(json.loads(json.dumps(fields))) == settings
    assert asked.items() <= fields.items()
    with pytest.raises(TuningError, match="'adam'"):
        stored_settings({**fields, "adam": 0.9})
    with pytest.raises(TuningError, match="'eps'"):
        stored_settings({name: value for name, value in fields.items() if name != "eps"})


def test_learning_rate_schedules():
    steps = np.arange(100)
    for schedule, shape in {"constant": np.ones(100), "linear": 1 - steps / 100}.items():
        asked = {"lr": 3.0, "steps": 100, "schedule": schedule}
        settings = settings_of({"estimator": "two-point", **asked})
        found = [settings.learning_rate(step) for step in range(100)]
        assert np.allclose(found, 3.0 * shape, rtol=0, atol=1e-14)
        assert settings.learning_rate(1000) >= 0


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_stated_forwards_are_those_of_the_estimator(seeds):
    its = settings_of({"estimator": "two-point", "seeds": seeds})
    assert its.options.forwards == make_estimator(its).probes == 2 * seeds

"""Estimators: the arithmetic of a step, to the bit."""

import numpy as np
import pytest
from seedtune.runtime.errors import TuningError
from seedtune.runtime.estimators import ESTIMATORS, make_estimator
from seedtune.runtime.noise import NOISE_KINDS, noise_vector
from seedtune.runtime.settings import Settings

KEY = {"seed": 11, "step": 4}


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_two_point_is_algorithm_1_of_mezo(kind):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1001).astype(np.float32)
    slope = rng.standard_normal(1001)
    estimator = make_estimator("two-point", kind)
    rows = np.empty((estimator.probes, 1001), dtype=np.float32)
    estimator.perturb(values, rows, eps=0.01, **KEY)
    z = noise_vector(1001, kind=kind, **KEY)
    assert (rows[0] == values + np.float32(0.01) * z).all()
    assert (rows[1] == values - np.float32(0.01) * z).all()
    scalars = estimator.scalars(rows.astype(np.float64) @ slope, eps=0.01)
    assert scalars.dtype == np.float16 and scalars.shape == (estimator.scalar_count,)
    assert np.isclose(float(scalars[0]), slope @ z, rtol=2e-3)  # half an ulp of float16 and eps's
    before = values.copy()
    estimator.apply(values, scalars, lr=0.05, **KEY)
    assert (values == before + np.float32(-0.05 * float(scalars[0])) * z).all()


@pytest.mark.parametrize("losses", [(1e9, 0.0), (np.inf, 1.0), (np.nan, 1.0), (np.inf, np.inf)])
def test_two_point_scalars_beyond_float16_are_not_finite(losses):
    scalars = make_estimator("two-point", "rademacher").scalars(np.array(losses), eps=1e-2)
    assert not np.isfinite(scalars).any()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_apply_depends_on_its_arguments_alone(name):
    """Two fresh estimators, one of which has also perturbed, end in the same bits."""
    ends = []
    for live in (True, False):
        estimator = make_estimator(name, "rademacher")
        values = np.ones(100, dtype=np.float32)
        rows = np.empty((estimator.probes, 100), dtype=np.float32)
        for step in range(5):
            if live:
                estimator.perturb(values, rows, seed=1, step=step, eps=0.1)
                estimator.scalars(np.arange(estimator.probes, dtype=np.float64), eps=0.1)
            scalars = np.full(estimator.scalar_count, step + 0.5, dtype=np.float16)
            estimator.apply(values, scalars, seed=1, step=step, lr=0.01)
        ends.append(values.tobytes())
    assert ends[0] == ends[1]


def test_an_unknown_estimator_is_refused():
    with pytest.raises(TuningError, match="estimator='adam' is not one of two-point"):
        make_estimator("adam", "rademacher")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("steps", 0),
        ("steps", 1.5),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("eps", 0.0),
        ("eps", "small"),
        ("schedule", "step"),
        ("warmup", -1),
        ("eval_every", -1),
        ("noise", "uniform"),
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
    with pytest.raises(TuningError, match="'momentum'"):
        Settings.from_dict({**settings.to_dict(), "momentum": 0.9})


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

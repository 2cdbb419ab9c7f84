"""Estimators: the arithmetic of a step, to the bit."""

import numpy as np
import pytest
from fakes import fake_basis, noise_vector
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
from seedtune.runtime.estimators.momentum import norm
from seedtune.runtime.estimators.probes import Perturbing
from seedtune.runtime.settings import NOISE_KINDS, Settings

KEY = {"seed": 11, "step": 4}
K = 64
PERTURBING = [name for name, facts in ESTIMATORS.items() if facts.directions]


def alone(losses):
    """Losses of probes as those of a batch of one example."""
    return losses[:, None]


def made(name: str, entries: int = K, **settings) -> Perturbing:
    its = Settings(estimator=name, batch_size=1, **settings)
    estimator = make_estimator(its, fake_basis(entries))
    assert isinstance(estimator, Perturbing)
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


@pytest.mark.parametrize("name", ["two-point", "leave-one-out"])
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


def test_one_sided_is_the_step_of_fzoo():
    values = np.linspace(-1, 1, 50, dtype=np.float32)
    estimator = made("one-sided")
    assert estimator.probes == 9 and estimator.scalar_count == 8
    rows = np.empty((9, 50), dtype=np.float32)
    estimator.perturb(values, rows, eps=0.01, **KEY)
    zs = [noise_vector(50, probe=probe, **KEY) for probe in range(8)]
    assert (rows[0] == values).all()
    assert all((rows[1 + i] == values + np.float32(0.01) * z).all() for i, z in enumerate(zs))
    losses = np.array([1.0, 1.5, 0.5, 2.0, 1.0, 1.25, 0.75, 3.0, 1.125])
    scalars = estimator.scalars(alone(losses), eps=0.01)
    wanted = (losses[1:] - 1.0) / np.sqrt(np.mean((losses[1:] - losses[1:].mean()) ** 2))
    assert np.allclose(scalars, wanted, rtol=1e-3)
    moved = values.copy()
    estimator.apply(moved, scalars, lr=0.1, **KEY)
    step = sum(float(s) * z for s, z in zip(scalars, zs, strict=True))
    assert np.allclose(moved, values - 0.1 / 8 * step, atol=1e-6)


LOSSES = st.lists(st.floats(0, 8, width=16), min_size=9, max_size=9).map(np.array)


@given(losses=LOSSES, power=st.integers(-20, 20))
def test_one_sided_steps_do_not_depend_on_the_scale_of_the_loss(losses, power):
    """To the bit for powers of two, which scale without rounding."""
    estimator = made("one-sided")
    scalars = estimator.scalars(alone(losses), eps=0.01)
    assert (estimator.scalars(alone(losses * 2.0**power), eps=0.01) == scalars).all()


def test_one_sided_does_not_move_where_all_probes_agree():
    losses = np.array([1.0] + [2.0] * 8)
    assert (made("one-sided").scalars(alone(losses), eps=0.01) == 0).all()


@given(losses=LOSSES, constant=st.integers(-1000, 1000))
def test_leave_one_out_ignores_what_all_losses_have_in_common(losses, constant):
    """Sums of these numbers are exact, so the scalars differ by the last division's rounding."""
    estimator = made("leave-one-out", directions=9)
    scalars = estimator.scalars(alone(losses), eps=0.5).astype(np.float64)
    moved = estimator.scalars(alone(losses + constant), eps=0.5).astype(np.float64)
    assert np.allclose(moved, scalars, rtol=1e-3, atol=1e-6)
    assert np.allclose(scalars, (losses - losses.mean()) * 9 / 8 / 0.5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", PERTURBING)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_any_loss_that_is_not_sound_makes_a_scalar_that_is_not_finite(name, bad):
    estimator = made(name, directions=2)
    for probe in range(estimator.probes):
        losses = np.linspace(1, 2, estimator.probes)
        losses[probe] = bad
        scalars = estimator.scalars(alone(losses), eps=1e-2)
        bounded = name in ("one-sided", "gauss-newton")
        assert (np.isfinite(bad) and bounded) or not np.isfinite(scalars).all()


@given(
    directions=st.integers(1, 3),
    cone=st.floats(0, 0.99),
    decay=st.floats(0, 0.99),
    steps=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_momentum_directions_lie_on_a_cone_around_the_momentum(
    directions, cone, decay, steps, seed
):
    estimator = made("momentum", directions=directions, cone=cone, momentum=decay)
    rng = np.random.default_rng(seed)
    values = np.zeros(K, dtype=np.float32)
    wanted = np.zeros(K)
    for step in range(steps + 1):
        rows = np.empty((2 * directions, K), dtype=np.float32)
        estimator.perturb(values, rows, seed=seed, step=step, eps=0.5)
        zs = (rows[0::2].astype(np.float64) - rows[1::2]) / (2 * 0.5)
        us = [noise_vector(K, seed=seed, step=step, probe=p) for p in range(directions)]
        length = np.linalg.norm(wanted)
        for z, u in zip(zs, us, strict=True):
            unit = wanted / length if length else wanted
            lean = cone if length else 0.0
            assert np.allclose(z, lean * K**0.5 * unit + (1 - lean**2) ** 0.5 * u, atol=2e-4)
            # |z| is sqrt(K) but for what noise and momentum have in common.
            common = 2 * lean * (1 - lean**2) ** 0.5 * K**0.5 * (unit @ u)
            assert np.isclose(z @ z, K + common, rtol=1e-4)
        scalars = rng.standard_normal(directions).astype(np.float16)
        before = values.astype(np.float64)
        estimator.apply(values, scalars, seed=seed, step=step, lr=0.25)
        estimate = scalars.astype(np.float64) @ zs / directions
        assert np.allclose(values, before - 0.25 * estimate, atol=1e-4)
        wanted = decay * wanted + (1 - decay) * estimate
        assert np.allclose(estimator.state["momentum"], wanted, atol=1e-4)


def test_momentum_without_a_lean_is_two_point():
    settings = {"directions": 2, "noise": "gaussian"}
    estimator, plain = made("momentum", cone=0.0, **settings), made("two-point", **settings)
    for step in range(3):
        rows = np.empty((2, 4, 100), dtype=np.float32)
        values = np.ones((2, 100), dtype=np.float32)
        for one, made_by in enumerate((estimator, plain)):
            made_by.perturb(values[one], rows[one], seed=1, step=step, eps=0.1)
            scalars = made_by.scalars(alone(np.array([1.0, 2.0, 3.0, 5.0])), eps=0.1)
            made_by.apply(values[one], scalars, seed=1, step=step, lr=0.01)
        assert (rows[0] == rows[1]).all() and np.allclose(values[0], values[1], atol=1e-6)


@given(
    parts=st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=50),
    order=st.randoms(),
)
def test_norm_is_that_of_numpy_in_any_order(parts, order):
    vector = np.array(parts, dtype=np.float32)
    found = norm(vector)
    assert np.isclose(found, np.linalg.norm(vector.astype(np.float64)), rtol=1e-4)
    order.shuffle(parts)
    assert norm(np.array(parts, dtype=np.float32)) == found


def test_norm_takes_ten_million_entries():
    assert norm(np.full(10_000_000, 0.75, dtype=np.float32)) == 0.75 * 10_000_000**0.5


def test_each_estimator_has_its_own_number_of_directions():
    usual = {
        "readout": 0,
        "text-head": 0,
        "gauss-newton": 16,
        "per-example": 0,
        "two-point": 1,
        "one-sided": 8,
        "leave-one-out": 8,
        "momentum": 1,
    }
    assert usual.keys() == ESTIMATORS.keys()
    for name, directions in usual.items():
        for left in (None, 0):
            its = Settings(estimator=name, directions=left)
            assert with_defaults(its).directions == directions
    with pytest.raises(TuningError, match="directions=1 must be 2 to 32768 for leave-one-out"):
        facts_of(Settings(estimator="leave-one-out", directions=1))
    with pytest.raises(TuningError, match="directions=3 must be 0 for readout"):
        facts_of(Settings(estimator="readout", directions=3))


ANYTHING = Ground(
    answers=2,
    head_rows=2,
    hidden_width=6,
    basis=fake_basis(K),
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
        ("momentum", 1.0),
        ("momentum", None),
        ("cone", 1.0),
        ("cone", -0.1),
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


def test_settings_of_older_journals_keep_their_meaning():
    """All fields that the first journals had, as they stand in their headers."""
    old = {
        "seed": 3, "steps": 400, "batch_size": 16, "lr": 1e-4, "eps": 0.01, "schedule": "linear",
        "warmup": 0, "eval_every": 100, "estimator": "two-point", "noise": "rademacher",
        "best_by": "metric", "loss_jump": 2.0, "scalar_jump": 10.0, "max_skips": 10,
    }  # fmt: skip
    settings = Settings.from_dict(old)
    assert {field: settings.to_dict()[field] for field in old} == old
    estimator = make_estimator(settings)
    assert (estimator.probes, estimator.scalar_count) == (2, 1)
    with pytest.raises(TuningError, match="'eps'"):
        Settings.from_dict({name: value for name, value in old.items() if name != "eps"})


@pytest.mark.parametrize("name", PERTURBING)
def test_the_stated_forwards_are_those_of_the_estimator(name):
    for directions in (ESTIMATORS[name].least_directions, 5):
        estimator = made(name, directions=directions)
        assert ESTIMATORS[name].forwards(directions) == estimator.probes

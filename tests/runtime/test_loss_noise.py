"""The measurement of loss noise, on functions whose noise and gradient are known."""

import hashlib
from dataclasses import asdict

import numpy as np
import pytest
from fakes import FakeEngine, fake_start
from seedtune.runtime.errors import TuningError
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.tuning import loss_noise
from seedtune.runtime.tuning.loss_noise import LADDER, measure_loss_noise
from tiny_run import SETTINGS, tuner

VALUES = fake_start(512).values
SLOPE = np.random.default_rng(3).standard_normal(512)
SLOPE *= 15 / np.linalg.norm(SLOPE)  # typical projected gradient of +-1 noise: 15


def noisy_loss(sigma, curvature=0.0):
    """A loss that jumps by ``sigma`` whenever a value moves, as 8-bit activations make it."""

    def losses(rows):
        found = []
        for row in rows:
            digest = hashlib.sha256(row.tobytes()).digest()
            jump = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal()
            moved = (row - VALUES).astype(np.float64)
            found.append(2 + SLOPE @ moved + curvature * moved @ moved + sigma * jump)
        return np.array(found)

    return losses


@pytest.mark.parametrize(
    ("sigma", "wanted"), [(0.0, (1e-4,)), (0.003, (1e-3,)), (0.05, (1e-2,)), (0.02, (3e-3, 1e-2))]
)
def test_takes_the_smallest_eps_at_which_noise_is_well_below_the_gradient(
    sigma, wanted, monkeypatch
):
    monkeypatch.setattr(loss_noise, "DIRECTIONS", 32)
    monkeypatch.setattr(loss_noise, "REPEATS", 64)
    found = measure_loss_noise(noisy_loss(sigma), VALUES, seed=0)
    assert found.eps in wanted and found.adequate
    assert abs(found.sigma - sigma) <= 0.15 * sigma + 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_the_default_number_of_forwards_lands_near_the_right_eps(seed):
    found = measure_loss_noise(noisy_loss(0.05), VALUES, seed=seed)
    assert found.eps in (3e-3, 1e-2, 3e-2)


def test_curvature_does_not_count_as_noise():
    found = measure_loss_noise(noisy_loss(0.0, curvature=10.0), VALUES, seed=0)
    assert found.sigma < 1e-6 and found.eps == LADDER[0]


def test_noise_above_all_of_the_ladder_is_said():
    found = measure_loss_noise(noisy_loss(20.0), VALUES, seed=0)
    assert not found.adequate and found.eps == LADDER[-1]


def test_it_is_deterministic_and_takes_few_forwards():
    count = 0

    def counted(rows):
        nonlocal count
        count += len(rows)
        return noisy_loss(0.05)(rows)

    first = measure_loss_noise(counted, VALUES, seed=4)
    assert count == 1 + 16 + 48
    assert measure_loss_noise(noisy_loss(0.05), VALUES, seed=4) == first


def test_losses_that_are_not_finite_are_an_error():
    with pytest.raises(TuningError, match="not finite near the start"):
        measure_loss_noise(lambda rows: np.full(len(rows), np.nan), VALUES, seed=0)


def test_a_run_with_eps_auto_measures_and_journals_it(tmp_path):
    settings = SETTINGS | {"eps": "auto", "steps": 5}
    with tuner(tmp_path, settings=settings) as live:
        measured = live.loss_noise
        list(live)
    header = read_journal(tmp_path).header
    assert header.settings["eps"] == measured.eps == live.history.settings.options.eps
    assert header.extra["loss_noise"] == asdict(measured)
    engine = FakeEngine(64)
    with tuner(tmp_path, settings=settings, engine=engine) as live:
        assert live.loss_noise is None and engine.calls == []
        assert live.history.settings.options.eps == measured.eps

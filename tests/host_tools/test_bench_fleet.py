"""The arithmetic of the fleet's benchmark; its figures are measured on SmolLM2."""

import numpy as np
from seedtune.host_tools.bench import fleet
from seedtune.host_tools.bench.fleet import guesses
from seedtune.runtime.estimators.ridge_logistic import Examples


def test_guesses_of_few_rows_are_right_and_noise_hides_them(monkeypatch):
    monkeypatch.setattr(fleet, "DRAWS", 3)
    draw = np.random.default_rng(0)
    features = draw.standard_normal((1300, 1, 401)).astype(np.float32)
    features[:, :, -1] = 1
    train = Examples(np.zeros((1300, 2), np.float32), features, draw.integers(0, 2, 1300))
    few, many = (guesses(train, rows) for rows in (20, 200))
    assert few["0"]["together"] == 10.5, "all twenty come first"
    assert few["0"]["alone"] < 50 < 100 < few["1"]["alone"]
    assert many["0"]["alone"] > 200

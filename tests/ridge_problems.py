"""Problems of ridge logistic regression, and what solves them."""

import numpy as np
from seedtune.runtime.estimators.ridge_logistic import Examples, scores

SHAPES = {"binary": (2, 2), "three labels": (3, 3), "two choices": (2, 1), "four choices": (4, 1)}
"""Answers A and rows R of the weights."""


def problem(seed: int, answers: int, rows: int, *, count: int = 40, width: int = 8) -> Examples:
    """Examples whose answers really follow from their features, of any place and size."""
    rng = np.random.default_rng(seed)
    shape = (count, answers // rows, width)
    place, size = rng.standard_normal(width), rng.uniform(0.3, 3, width)
    features = (rng.standard_normal(shape) * size + place).astype(np.float32)
    features = np.concatenate([features, np.ones((*shape[:2], 1), np.float32)], axis=2)
    offset = rng.standard_normal((count, answers)).astype(np.float32)
    true = Examples(offset, features, np.zeros(count, np.int64))
    noise = rng.gumbel(size=(count, answers))
    found = scores(true, rng.standard_normal((rows, width + 1)).astype(np.float32)) + noise
    return Examples(offset, features, found.argmax(axis=1))


def standardised(seen: Examples, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and weights as the penalty sees them, in float64."""
    exact = seen.features.astype(np.float64)
    flat = exact.reshape(-1, exact.shape[2])
    mean, scale = flat.mean(axis=0), flat.std(axis=0) * (flat.shape[1] - 1) ** 0.5
    mean[-1], scale[-1] = 0, 1
    own = weights * scale
    own[:, -1] = weights @ np.append(mean[:-1], 1)
    return (exact - mean) / scale, own


def objective_slope(seen: Examples, ridge: float, weights: np.ndarray) -> np.ndarray:
    """Its gradient in the standardised weights."""
    standard, own = standardised(seen, weights)
    scored = seen.offset + (standard @ own.T).reshape(seen.offset.shape)
    shares = np.exp(scored - np.logaddexp.reduce(scored, axis=1)[:, None])
    wrong = shares - (np.arange(seen.offset.shape[1]) == seen.gold[:, None])
    flat = standard.reshape(-1, standard.shape[2])
    return wrong.reshape(-1, len(weights)).T @ flat + ridge * own

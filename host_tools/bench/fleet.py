"""``seedtune bench fleet``: what a fleet's privacy costs, and what one device gives away.

Devices are simulated on hidden states that are computed once (minutes; kept in the cache); what
each sends is made by the code that devices run. Rows are SST-2's training sentences, accuracy is on
all 872 of its validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.estimators import private_fit
from seedtune.runtime.estimators.pooled_fit import (
    PooledFit,
    Sent,
    losses_and_gradients,
    summarise,
)
from seedtune.runtime.estimators.private_fit import CLIP, PrivateFit, Reference, mean_gradient
from seedtune.runtime.estimators.ridge_logistic import SHARES, Examples, choose, fit, scores
from seedtune.runtime.files import default_cache
from seedtune.runtime.fleet import examples_of
from seedtune.runtime.fleet.device import pack_examples, unpack_examples
from seedtune.runtime.fleet.heads import ROUNDS, SHARE
from seedtune.runtime.fleet.release import released
from seedtune.runtime.model import open_model

from ..data.named_tasks import load_task
from ..quickstart import MODEL
from .measuring.default_bundle import default_bundle
from .measuring.results_files import RESULTS, say, write_figures

TASK = "sst2"
ROWS = 1600
DELTA = 1e-5
NOISES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
FLEETS = {6: 180, 100: 60, 1000: 60}
"""Devices, and rows of each, drawn with replacement."""
RESERVED = 500
"""Rows without labels that are the server's own, where noise is added."""
CANDIDATES, GUESSED, GUESSED_NOISES, DRAWS = 1000, (16, 50, 100, 200, 400), (0.0, 0.5, 1.0), 20


def bench_fleet(
    *, bundle: Path | None = None, threads: int | None = None, results: Path = RESULTS
) -> dict[str, Any]:
    """See ``uneven``, ``privacy`` and ``guesses``."""
    opened = open_bundle(bundle or default_bundle(MODEL))
    train, test = _states(opened, threads)
    figures: dict[str, Any] = {"model": MODEL, "task": TASK, "train_rows": ROWS}
    figures["uneven"] = uneven(train, test)
    figures["privacy"] = privacy(train, test)
    figures["guessing"] = {str(rows): guesses(train, rows) for rows in GUESSED}
    return write_figures("fleet", figures, results)


def accuracy(test: Examples, weights: NDArray[np.float32]) -> float:
    """Share of right answers."""
    return float((scores(test, weights).argmax(axis=1) == test.gold).mean())


def uneven(train: Examples, test: Examples) -> dict[str, Any]:
    """Six devices, both labels dealt out by a Dirichlet distribution of 0.3, 60 to 400 rows each:
    the pooled fit, the readout on all rows, and the mean of readouts on each device's."""
    draw = np.random.default_rng(0)
    parts: list[NDArray[np.int64]] = []
    while not parts or not all(60 <= len(part) <= 400 for part in parts):
        owner = np.empty(len(train.gold), np.int64)
        for label in (0, 1):
            its = train.gold == label
            owner[its] = draw.choice(6, its.sum(), p=draw.dirichlet(np.full(6, 0.3)))
        parts = [np.flatnonzero(owner == device) for device in range(6)]
    devices = [_rows(train, part).of_share(SHARE) for part in parts]
    points = [_pooled(devices, ROUNDS), _pooled([train.of_share(SHARE)], 4 * ROUNDS)]
    apart = float(np.linalg.norm(points[0] - points[1]) / np.linalg.norm(points[1]))
    return {
        "rows": [len(part) for part in parts],
        "share_positive": [float(train.gold[part].mean()) for part in parts],
        "rounds": ROUNDS,
        "distance": apart,
        "fleet": accuracy(test.of_share(SHARE), points[0]),
        "central": _readout(train, test),
        "alone": float(np.mean([_readout(_rows(train, part), test) for part in parts])),
    }


def _pooled(devices: list[Examples], rounds: int) -> NDArray[np.float32]:
    pooled = PooledFit(2, devices[0].features.shape[2] - 1, 2)
    sent = [Sent(summarise(each)) for each in devices]
    for _ in range(rounds):
        for its, each in zip(sent, devices, strict=True):
            its.add(*losses_and_gradients(each, its.summary.mean, pooled.points[-1][None]))
        pooled.advance(sent)
    return pooled.points[-1]


def _readout(train: Examples, test: Examples) -> float:
    zeros = np.zeros((2, train.features.shape[2]), np.float32)
    choice = choose(train, zeros, SHARES)
    return accuracy(
        test.of_share(choice.share), fit(train.of_share(choice.share), choice.ridge, zeros)
    )


def privacy(train: Examples, test: Examples) -> dict[str, dict[str, Any]]:
    """By devices and noise: accuracy of one release, the mean of five draws. Epsilons are at
    ``DELTA``, for all of one device's rows, against who sees the ``results`` and against the
    ``server``; None without noise."""
    count = len(train.gold) - RESERVED
    reference = Reference.of(train.features[count:, 0, :-1])
    own = train.part(np.arange(len(train.gold)) < count).of_share(private_fit.SHARE)
    found: dict[str, dict[str, Any]] = {}
    for devices, rows in FLEETS.items():
        draw = np.random.default_rng(devices)
        parts = draw.integers(0, count, (devices, rows))
        start = PrivateFit(2, 2, reference)
        place = reference.mean, reference.scale, start.weights
        own_gradients = (mean_gradient(_rows(own, part), *place) for part in parts)
        mean = np.mean([released(each, {"clip": CLIP, "noise": 0.0}) for each in own_gradients], 0)
        for noise in NOISES:
            tries = []
            for _ in range(5 if noise else 1):
                start.weights = np.zeros_like(start.weights)
                start.advance(mean + draw.normal(0, noise * CLIP / devices**0.5, mean.shape))
                tries.append(accuracy(test.of_share(private_fit.SHARE), start.raw_weights))
            row = {"accuracy": float(np.mean(tries)), "deviation": float(np.std(tries))}
            epsilons = {"results": epsilon(noise * devices**0.5), "server": epsilon(noise)}
            found.setdefault(str(devices), {})[f"{noise:g}"] = {**row, **epsilons}
        say(f"{devices} devices: {found[str(devices)]}")
    return found


def epsilon(noise: float) -> float | None:
    """Of one release, by Flower's accountant."""
    if not noise:
        return None
    from flwr.serverapp import (
        GaussianPrivacyEvent,
        NeighboringRelation,
        PrivacyConfig,
        RdpAccountant,
        SamplingMethod,
    )

    relation, sampling = NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
    accountant = RdpAccountant(PrivacyConfig(DELTA, 1, relation, sampling))
    accountant.compose(GaussianPrivacyEvent(noise, 1, 1))
    return float(accountant.get_privacy_spent().epsilon)


def guesses(train: Examples, rows: int) -> dict[str, dict[str, float]]:
    """Ranks of a device's texts, with the right label, among ``CANDIDATES`` by its first gradient.

    The guesser knows how far the gradient was cut. ``alone``: it tries one text at a time, and
    takes the sum over the device's other rows for a Gaussian with the spread of such rows'
    gradients, known from others: the likelihood ratio. ``together``: all of the device's texts are
    among the candidates, and the guesser solves for how much of each is in the sum.

    Returns:
        By noise, in clips (0 is the exact sum, not cut): means over ``DRAWS`` devices of the median
        rank of their texts, and its ``deviation`` (of ``alone``).
    """
    draw = np.random.default_rng(0)
    order = draw.permutation(len(train.gold))
    seen = _rows(train, order[:CANDIDATES]).of_share(private_fit.SHARE)
    others = _rows(train, order[CANDIDATES:]).of_share(private_fit.SHARE)
    reference = Reference.of(others.features[:, 0, :-1])
    each, spread = (_row_gradients(some, reference) for some in (seen, others))
    middle, covariance = spread.mean(axis=0), np.cov(spread.T)
    floor, products = 0.01 * np.trace(covariance) / len(covariance), each @ each.T
    found = {}
    for noise in GUESSED_NOISES:
        medians = []
        for _ in range(DRAWS):
            chosen = draw.choice(CANDIDATES, rows, replace=False)
            exact = each[chosen].mean(axis=0)
            kept = min(1.0, CLIP / float(np.linalg.norm(exact))) if noise else 1.0
            told = released(exact, {"clip": CLIP, "noise": noise} if noise else {}) / kept
            size = noise * CLIP / kept
            around = covariance / rows + (floor / rows + size**2) * np.eye(len(covariance))
            white = np.linalg.solve(around, (each - middle).T).T / rows
            alone = white @ (told - middle) - 0.5 * (white * (each - middle)).sum(axis=1) / rows
            ridge = max(size**2 * rows, 1e-9 * float(np.square(each).sum()) / len(each))
            together = np.linalg.solve(products + ridge * np.eye(len(each)), each @ told)
            ranks = [1 + (-near).argsort().argsort()[chosen] for near in (alone, together)]
            medians.append(np.median(ranks, axis=1))
        means = np.mean(medians, axis=0)
        deviation = float(np.std(medians, axis=0)[0])
        found[f"{noise:g}"] = {
            "alone": float(means[0]), "together": float(means[1]), "deviation": deviation
        }  # fmt: skip
    return found


def _row_gradients(seen: Examples, reference: Reference) -> NDArray[np.float64]:
    """Of each row at weights of zero, float64 ``[n, D + 1]``."""
    features = seen.features[:, 0].astype(np.float64)
    features[:, :-1] = (features[:, :-1] - reference.mean) / reference.scale
    shares = np.exp(seen.offset[:, 0] - np.logaddexp.reduce(seen.offset, axis=1))
    return np.asarray((shares - (seen.gold == 0))[:, None] * features)


def _rows(seen: Examples, chosen: NDArray[np.int64]) -> Examples:
    return Examples(seen.offset[chosen], seen.features[chosen], seen.gold[chosen])


def _states(bundle: Any, threads: int | None) -> tuple[Examples, Examples]:
    """Of the first ``ROWS`` training sentences in a fixed order, and of the test's."""
    file = default_cache() / "fleet" / f"{bundle.sha256[:16]}.npz"
    if not file.exists():
        data = load_task(TASK)
        order = np.random.default_rng(0).permutation(len(data.train))[:ROWS]
        file.parent.mkdir(parents=True, exist_ok=True)
        seen = {}
        with open_model(
            bundle, task=data.spec, on_long="truncate", threads=threads or "auto"
        ) as model:
            for name, rows in (("train", [data.train[n] for n in order]), ("test", data.test)):
                say(f"hidden states of {len(rows)} rows")
                seen[name] = examples_of(model, model.encode(rows))
        file.write_bytes(pack_examples(seen))
    kept = unpack_examples(file.read_bytes())
    return kept["train"], kept["test"]

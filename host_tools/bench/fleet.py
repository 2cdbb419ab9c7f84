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
from seedtune.runtime.estimators.private_fit import CLIP, PrivateFit, Reference, mean_gradient
from seedtune.runtime.estimators.ridge_logistic import Examples, scores
from seedtune.runtime.files import default_cache
from seedtune.runtime.fleet import examples_of
from seedtune.runtime.fleet.device import pack_examples, unpack_examples
from seedtune.runtime.fleet.release import released
from seedtune.runtime.model import open_model

from ..data.named_tasks import load_task
from .measuring.default_bundle import default_bundle
from .measuring.results_files import RESULTS, say, write_figures

MODEL, TASK = "smollm2-135m", "sst2"
ROWS = 1600
DELTA = 1e-5
NOISES = (0.0, 0.5, 1.0, 2.0, 5.0)
FLEETS, EACH = (100, 1000), 60
"""Devices, and rows of each."""
RESERVED = 500
"""Rows without labels that are the server's own, where noise is added."""
CANDIDATES, GUESSED = 1000, (16, 50, 100, 200, 400)


def bench_fleet(
    *, bundle: Path | None = None, threads: int | None = None, results: Path = RESULTS
) -> dict[str, Any]:
    """See ``privacy`` and ``guesses``."""
    opened = open_bundle(bundle or default_bundle(MODEL))
    train, test = _states(opened, threads)
    figures: dict[str, Any] = {"model": MODEL, "task": TASK, "train_rows": ROWS}
    figures["privacy"] = privacy(train, test)
    figures["guessing"] = {str(rows): guesses(train, rows) for rows in GUESSED}
    return write_figures("fleet", figures, results)


def show_fleet(figures: dict[str, Any]) -> str:
    """Two tables."""
    lines = [
        "devices  noise  epsilon  accuracy",
        *(
            f"{row['devices']:>7}  {row['noise']:>5g}  {row['epsilon'] or float('inf'):>7.3g}  "
            f"{row['accuracy']:.4f}"
            for row in figures["privacy"]
        ),
        f"rows of a device: median rank of its texts among {CANDIDATES}",
        *(
            f"{rows:>4}: " + "; ".join(f"{way} {its['median']:g}" for way, its in found.items())
            for rows, found in figures["guessing"].items()
        ),
    ]
    return "\n".join(lines)


def accuracy(test: Examples, weights: NDArray[np.float32]) -> float:
    """Share of right answers."""
    return float((scores(test, weights).argmax(axis=1) == test.gold).mean())


def privacy(train: Examples, test: Examples) -> list[dict[str, Any]]:
    """Accuracy of one release with noise, by devices; their rows are drawn with replacement.
    ``epsilon`` is at ``DELTA``, for all of one device's rows; None without noise."""
    count = len(train.gold) - RESERVED
    reference = Reference.of(train.features[count:, 0, :-1])
    own = train.part(np.arange(len(train.gold)) < count).of_share(private_fit.SHARE)
    found = []
    for devices in FLEETS:
        draw = np.random.default_rng(devices)
        parts = draw.integers(0, count, (devices, EACH))
        start = PrivateFit(2, 2, reference)
        place = reference.mean, reference.scale, start.weights
        cut = {"clip": CLIP, "noise": 0.0, "devices": devices}
        own_gradients = (mean_gradient(_rows(own, part), *place) for part in parts)
        mean = np.mean([released(each, cut) for each in own_gradients], axis=0)
        for noise in NOISES:
            tries = []
            for _ in range(3 if noise else 1):
                start.weights = np.zeros_like(start.weights)
                start.advance(mean + draw.normal(0, 1, mean.shape) * noise * CLIP / devices)
                tries.append(accuracy(test.of_share(private_fit.SHARE), start.raw_weights))
            row = {"devices": devices, "noise": noise, "epsilon": epsilon(noise)}
            found.append({**row, "accuracy": float(np.mean(tries))})
            say(f"{found[-1]}")
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

    ``alone``: the guesser tries one text at a time, and takes the sum over the device's other rows
    for a Gaussian with the spread of such rows' gradients, known from others: the likelihood ratio.
    ``together``: all of the device's texts are among the candidates, and the guesser solves for how
    much of each is in the sum. The rest are the same with a device's share of noise in a fleet of
    1 000, of 2 clips on the sum (see ``privacy``).
    """
    draw = np.random.default_rng(0)
    order = draw.permutation(len(train.gold))
    seen = _rows(train, order[:CANDIDATES]).of_share(private_fit.SHARE)
    others = _rows(train, order[CANDIDATES:]).of_share(private_fit.SHARE)
    reference = Reference.of(others.features[:, 0, :-1])
    each, spread = (_row_gradients(some, reference) for some in (seen, others))
    exact = each[:rows].mean(axis=0)
    cut = {"clip": CLIP, "noise": 2.0, "devices": 1000}
    noised = released(exact, cut)
    middle, covariance = spread.mean(axis=0), np.cov(spread.T)
    found = {}
    for name, told, noise in (("exact", exact, 0.0), ("noise", noised, 2.0 * CLIP / 1000**0.5)):
        floor = 0.01 * np.trace(covariance) / len(covariance)
        around = covariance / rows + (floor / rows + noise**2) * np.eye(len(covariance))
        white = np.linalg.solve(around, (each - middle).T).T / rows
        alone = white @ (told - middle) - 0.5 * (white * (each - middle)).sum(axis=1) / rows
        ridge = max(noise**2 * rows, 1e-9 * float(np.square(each).sum()) / len(each))
        together = each @ each.T
        together = np.linalg.solve(together + ridge * np.eye(len(each)), each @ told)
        for way, near in (("alone", alone), ("together", together)):
            ranks = np.array([1 + (near > near[number]).sum() for number in range(rows)])
            median = {"median": float(np.median(ranks)), "best": (rows + 1) / 2}
            found[f"{name}, {way}"] = {**median, "first": float((ranks == 1).mean())}
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

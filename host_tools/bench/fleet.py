"""``seedtune bench fleet``: what a fleet learns, how private it is and what one device gives away.

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
    RIDGE,
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
from .measuring.results_files import RESULTS, say, write_figures
from .programs.default_bundle import default_bundle

MODEL, TASK = "smollm2-135m", "sst2"
ROWS, FEWEST, MOST, ALPHA = 1600, 60, 400, 0.3
DELTA = 1e-5
NOISES = (0.0, 0.5, 1.0, 2.0, 5.0)
FLEETS = (6, 100, 1000)
RESERVED = 500
"""Rows without labels that are the server's own, where noise is added."""
CANDIDATES, GUESSED = 1000, (16, 50, 100, 200, 400)


def bench_fleet(
    *, bundle: Path | None = None, threads: int | None = None, results: Path = RESULTS
) -> dict[str, Any]:
    """See ``exactness``, ``drill``, ``privacy`` and ``guesses``."""
    opened = open_bundle(bundle or default_bundle(MODEL))
    train, test = _states(opened, threads)
    figures: dict[str, Any] = {"model": MODEL, "task": TASK, "train_rows": ROWS}
    figures["six"] = exactness(train, test)
    figures["drill"] = drill(train)
    figures["privacy"] = privacy(train, test)
    figures["guessing"] = {str(rows): guesses(train, rows) for rows in GUESSED}
    _plot(figures["privacy"], results / "fleet.png")
    return write_figures("fleet", figures, results)


def show_fleet(figures: dict[str, Any]) -> str:
    """Three tables."""
    six = figures["six"]
    lines = [
        f"six devices of {six['rows']} rows, accuracy on 872: fleet {six['fleet']:.4f}, "
        f"central {six['central']:.4f}, alone {six['alone']:.4f} (mean)",
        f"{six['rounds']} rounds, {six['bytes'] / 1000:.1f} kB a device, weights within "
        f"{six['distance']:.1e} of one fit to all rows",
        f"two killed, one late, one refused: {figures['drill']['distance']['14']:.1e} after 14",
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


def exactness(train: Examples, test: Examples) -> dict[str, Any]:
    """The pooled fit of six uneven devices beside one fit to all their rows and six alone."""
    parts = uneven(train.gold, 6)
    devices = [train.part(_mask(part, len(train.gold))) for part in parts]
    union = train.part(_mask(np.concatenate(parts), len(train.gold)))
    shared = [each.of_share(SHARE) for each in devices]
    pooled, sent = PooledFit(2, _width(train), 2), [Sent(summarise(each)) for each in shared]
    for _ in range(ROUNDS):
        for each, own in zip(shared, sent, strict=True):
            own.add(*losses_and_gradients(each, own.summary.mean, pooled.points[-1][None]))
        pooled.advance(sent)
    summary = sent[0].summary
    once = [summary.mean, summary.deviation, summary.lengths]
    size = sum(each.nbytes for each in (*once, *sent[0].gradients)) + 8 * ROUNDS
    wanted = exact_fit(union.of_share(SHARE), RIDGE * len(union.gold))
    return {
        "rows": [len(part) for part in parts],
        "share_positive": [round(float(each.gold.mean()), 2) for each in devices],
        "rounds": ROUNDS,
        "bytes": size + summary.directions.size // 2,
        "distance": float(np.linalg.norm(pooled.points[-1] - wanted) / np.linalg.norm(wanted)),
        "fleet": accuracy(test.of_share(SHARE), pooled.points[-1]),
        "central": readout(union, test),
        "alone": float(np.mean([readout(each, test) for each in devices])),
    }


def drill(train: Examples) -> dict[str, Any]:
    """The same six, of which two are killed in round 4, one comes in round 5, and one turns its
    gradient's sign around in round 3.

    Returns:
        ``refused``: round, device and reason; ``distance`` from one fit to the rows of the three
        that stayed, by rounds.
    """
    parts = uneven(train.gold, 6)
    shared = [_rows(train, part).of_share(SHARE) for part in parts]
    pooled, sent = PooledFit(2, _width(train), 2), [Sent(summarise(each)) for each in shared]
    refused: list[tuple[int, int, str]] = []
    stayed = _rows(train, np.concatenate([parts[device] for device in (2, 4, 5)]))
    wanted = exact_fit(stayed.of_share(SHARE), RIDGE * len(stayed.gold))
    distance = {}
    for number in range(1, 15):
        absent = {0, 3} if number >= 4 else {5}
        absent |= {device for _, device, _ in refused} | ({5} if number < 5 else set())
        present = []
        for device in sorted({*range(6)} - absent):
            own, points = sent[device], np.stack(pooled.points)
            asked = points[len(own.losses) :]
            losses, gradients = losses_and_gradients(shared[device], own.summary.mean, asked)
            own.add(losses, -gradients if (number, device) == (3, 1) else gradients)
            reason = own.contradiction(pooled.points)
            if reason is None:
                present.append(own)
            else:
                refused.append((number, device, reason))
        pooled.advance(present)
        apart = float(np.linalg.norm(pooled.points[-1] - wanted) / np.linalg.norm(wanted))
        distance[str(number)] = apart
    return {"refused": refused, "distance": distance}


def uneven(gold: NDArray[np.int64], devices: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Rows of each device: every label's are dealt out by shares from a Dirichlet distribution,
    until all have ``FEWEST`` or more; of more than ``MOST`` the rest is left out."""
    draw = np.random.default_rng(seed)
    while True:
        parts: list[list[int]] = [[] for _ in range(devices)]
        shares = draw.dirichlet([ALPHA] * devices, size=2)
        for label in range(2):
            rows = draw.permutation(np.flatnonzero(gold == label))
            cuts = (np.cumsum(shares[label])[:-1] * len(rows)).astype(int)
            for part, own in zip(parts, np.split(rows, cuts), strict=True):
                part += own.tolist()
        if min(map(len, parts)) >= FEWEST:
            return [draw.permutation(np.array(part))[:MOST] for part in parts]


def exact_fit(seen: Examples, ridge: float) -> NDArray[np.float64]:
    """Weights float64 ``[2, D + 1]`` of two labels by Newton's method with the whole Hessian, in
    float64: what the fleet's are held against."""
    features = seen.features[:, 0].astype(np.float64)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.maximum(deviation, 1e-2 * deviation[:-1].mean()) * (len(mean) - 1) ** 0.5
    mean[-1], scale[-1] = 0, 1
    standard = (features - mean) / scale
    signs = 2 * seen.gold - 1
    offset = (seen.offset[:, 1] - seen.offset[:, 0]).astype(np.float64)
    half = np.zeros(len(mean))  # the rows are this and its negative
    for _ in range(30):
        wrong = 1 / (1 + np.exp(signs * (offset + 2 * standard @ half)))
        slope = -2 * standard.T @ (signs * wrong) + 2 * ridge * half
        bend = 4 * (standard.T * (wrong * (1 - wrong))) @ standard
        step = np.linalg.solve(bend + 2 * ridge * np.eye(len(mean)), slope)
        half -= step
        if np.linalg.norm(step) < 1e-10 * np.linalg.norm(half):
            break
    weights: NDArray[np.float64] = np.stack([-half, half]) / scale
    weights[:, -1] -= weights[:, :-1] @ mean[:-1]
    return weights


def readout(seen: Examples, test: Examples) -> float:
    """Accuracy of the readout as ``seedtune tune`` fits it."""
    zeros = np.zeros((2, seen.features.shape[2]), np.float32)
    choice = choose(seen, zeros, SHARES)
    weights = fit(seen.of_share(choice.share), choice.ridge, zeros)
    return accuracy(test.of_share(choice.share), weights)


def accuracy(test: Examples, weights: NDArray[np.float32]) -> float:
    """Share of right answers."""
    return float((scores(test, weights).argmax(axis=1) == test.gold).mean())


def privacy(train: Examples, test: Examples) -> list[dict[str, Any]]:
    """Accuracy of one release with noise, by devices; each of many has 60 rows drawn with
    replacement. ``epsilon`` is at ``DELTA``, for all of one device's rows; None without noise."""
    count = len(train.gold) - RESERVED
    reference = Reference.of(train.features[count:, 0, :-1])
    own = train.part(np.arange(len(train.gold)) < count).of_share(private_fit.SHARE)
    found = []
    for devices in FLEETS:
        draw = np.random.default_rng(devices)
        parts = uneven(own.gold, 6) if devices == 6 else draw.integers(0, count, (devices, 60))
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


def _mask(rows: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    return np.isin(np.arange(count), rows)


def _width(seen: Examples) -> int:
    return int(seen.features.shape[2]) - 1


def _plot(rows: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for devices in FLEETS:
        own = [row for row in rows if row["devices"] == devices and row["epsilon"]]
        axes.plot(
            [row["epsilon"] for row in own],
            [100 * row["accuracy"] for row in own],
            marker="o",
            label=f"{devices:,} devices",
        )
    axes.set_xscale("log")
    axes.set_xlabel(f"epsilon at delta {DELTA:g}, one release")
    axes.set_ylabel("SST-2 accuracy, %")
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)

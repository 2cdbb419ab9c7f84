"""A run of 60 steps on the fake model, the same in every test module that interrupts it."""

from pathlib import Path
from typing import Any

from fakes import FakeEngine, FakeTask, fake_examples, fake_start
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.settings import Settings, options_of
from seedtune.runtime.tuning.tuner import Tuner

K = 64
START = fake_start(K)
ENGINE = FakeEngine(K)
TASK = FakeTask()
TRAIN = fake_examples(64)
HELD_OUT = fake_examples(48, seed=1)
SETTINGS = {
    "seed": 3,
    "steps": 60,
    "batch_size": 8,
    "lr": 0.2,
    "eps": 0.01,
    "eval_every": 20,
    "estimator": "two-point",
}


CARRIED = [name for name in ESTIMATORS if name != "mlp-gradient"]
"""What the fake model carries: it has no blocks to hand a gradient down through."""


def suited(estimator: str, settings: dict[str, Any] = SETTINGS, **more: Any) -> dict[str, Any]:
    """``settings`` for another estimator, without the options that it does not have."""
    known = {*options_of(Settings), *options_of(ESTIMATORS[estimator].options)}
    asked = {**settings, "estimator": estimator, **more}
    return {name: value for name, value in asked.items() if name in known}


def rates(estimator: str, lr: float = 0.3) -> dict[str, float]:
    """A rate and a size for an estimator that would otherwise measure the size."""
    eps_of = options_of(ESTIMATORS[estimator].options).get("eps")
    return {"lr": lr, "eps": 0.01} if eps_of is not None and "auto" in eps_of.words else {}


def tuner(folder: Path, **changes: Any) -> Tuner:
    """A tuner of that run, with some arguments changed."""
    arguments: dict[str, Any] = {
        "engine": ENGINE,
        "start": START,
        "task": TASK,
        "train": TRAIN,
        "settings": SETTINGS,
        "eval_examples": HELD_OUT,
        **changes,
    }
    return Tuner(folder=folder, **arguments)


def run(folder: Path, **changes: Any) -> str:
    """Run to the end; the hash of the final values."""
    with tuner(folder, **changes) as live:
        for _ in live:
            pass
        return live.values.sha256

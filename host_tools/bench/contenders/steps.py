"""Steps of the int4 program on one batch, as ``bench device`` times them, and that batch.

The batch is of random tokens, all rows equally long, one answer position and two candidates a row,
as a classification task has it; no contender skips the output head's other positions less than
another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.estimators import StepContext, make_estimator, settings_of
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Encoded, task_for

Step = Callable[[], object]
_CORES = len(os.sched_getaffinity(0))
"""Threads of all, as torch takes them."""
_SPEC = {
    "kind": "classification",
    "template": "{text}\n",
    "label_field": "label",
    "verbalisers": {"0": "no", "1": "yes"},
}


def two_point_step(bundle: Bundle, rows: int, length: int) -> Step:
    """A two-point step as the loop does it: perturb, both losses, update."""
    last, candidates = np.array([[0, length - 1]]), np.array([[1, 2]])
    examples = [
        Encoded(row[None], last, candidates, gold=0)
        for row in _tokens(rows, length, bundle.vocab_size)
    ]
    engine, task = open_engine(bundle, _CORES), task_for(bundle, _SPEC)
    look = Look(engine, task, bundle.bounds, examples)
    estimator = make_estimator(settings_of({"estimator": "two-point"}))
    values = Values(bundle.values.astype(np.float32))
    at = StepContext(seed=0, step=0, eps=1e-2, lr=1e-9)

    def step() -> None:
        _, scalars = estimator.measure(look, values, at)
        estimator.apply(values, scalars, at)

    return step


def _tokens(rows: int, length: int, vocabulary: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length))


def random_tokens(rows: int, length: int, vocabulary: int) -> Any:
    """The batch as a tensor int64 ``[rows, length]``."""
    import torch

    return torch.from_numpy(_tokens(rows, length, vocabulary))


def last_token_loss(model: Any, tokens: Any) -> Any:
    """The loss of a transformers causal model, by the last position of each row alone."""
    import torch

    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, -1]
    return -torch.log_softmax(model.lm_head(hidden), dim=-1)[:, 1].mean()

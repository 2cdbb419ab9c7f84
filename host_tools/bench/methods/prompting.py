"""Baselines that tune nothing: the prompt alone, or with answered examples before it.

Brown et al., "Language Models are Few-Shot Learners" (arXiv 2005.14165), section 2.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.tasks import Encoded
from seedtune.runtime.tasks.classification import Classification
from seedtune.runtime.tasks.multiple_choice import MultipleChoice

from ..measuring.tuning_run import Progress
from .float_task import FloatTask, point
from .torch_engine import TorchEngine

FEWEST = 4
ROOM = 512
SEPARATOR = "\n\n"


def run(
    cell: FloatTask, settings: dict[str, Any], folder: Path, progress: Progress
) -> dict[str, Any]:
    """Evaluate once, with answered training examples before every prompt.

    As many as ``settings["shots"]`` where texts are short, fewer (but ``FEWEST``) where they are
    long: prompts then grow no longer than ``ROOM`` tokens.

    Returns:
        ``curve`` of one point, and ``shots``.
    """
    test, shots = cell.test, settings["shots"]
    if shots:
        shots = max(FEWEST, min(shots, ROOM // settings["length"]))
        chosen = balanced(cell.train, shots, settings["seed"])
        separator = cell.tokenizer.encode(SEPARATOR).ids
        shown = [token for one in chosen for token in [*answered(cell, one), *separator]]
        test = [behind(shown, example) for example in test]
    found = cell.evaluate(TorchEngine(cell.model), test)
    return {"curve": [point(0, found)], "shots": shots}


def balanced(train: list[Encoded], count: int, seed: int) -> list[Encoded]:
    """``count`` examples, as even over the labels as can be, in an order that hides them."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    labels = sorted({example.gold for example in train})
    by_label = {gold: [train[i] for i in order if train[i].gold == gold] for gold in labels}
    chosen = [by_label[labels[n % len(labels)]][n // len(labels)] for n in range(count)]
    return [chosen[i] for i in rng.permutation(count)]


def answered(cell: FloatTask, example: Encoded) -> list[int]:
    """Tokens of an example with its answer, without padding."""
    if isinstance(cell.task, Classification):
        word = cell.spec["verbalisers"][cell.task.labels[example.gold]]
        return [*example.tokens[0].tolist(), *cell.tokenizer.encode(word).ids]
    row = example.gold if isinstance(cell.task, MultipleChoice) else 0
    columns = example.positions[example.positions[:, 0] == row, 1]
    return list(example.tokens[row, : columns.max() + 2].tolist())


def behind(shown: list[int], example: Encoded) -> Encoded:
    """``example`` with the tokens ``shown`` before every row."""
    rows = np.tile(np.array(shown, np.int64), (example.rows, 1))
    return replace(
        example,
        tokens=np.hstack([rows, example.tokens]),
        positions=example.positions + np.array([0, len(shown)]),
    )

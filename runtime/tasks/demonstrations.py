"""Rows with their labels in front of every prompt, drawn from those that are there to learn from.

In-context learning (Brown et al. 2020, arXiv 2005.14165) without a choice of its own: which rows
stand in front matters as much as how many (Lu et al. 2022, arXiv 2104.08786), so several draws are
compared before anything is learned, on rows that then neither teach nor judge.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .rows import Row, encode_rows
from .task import Task

FIELD = "demonstrations"
"""Of a task's specification."""
USUAL = 8
"""Where no number is asked for. SST-2, readout after 960 sentences, mean loss of 500 others over
three draws: 0.326 without, 0.283, 0.277, 0.269 and 0.271 behind 2, 4, 8 and 16."""
DRAWS = 3
MOST_COMPARING, COMPARING = 96, 1 / 8
"""Rows that compare draws, and their share of all rows, at most."""
SHOWN = 1 / 32
"""Share of all rows that are shown where no number is asked for, at most: few rows are more worth
to learn from. Of CB's 28, eight shown left the readout nothing to learn (57.1 %, 72.6 without)."""
_ANSWER = 4
"""Tokens of an answer and a line's end behind a demonstration, about."""


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that compare draws, and the others. A row's own content decides, so that a run that is
    resumed has the same others."""
    count = min(MOST_COMPARING, int(COMPARING * len(rows)))
    first = set(sorted(range(len(rows)), key=lambda number: _key(rows[number]))[:count])
    comparing = [row for number, row in enumerate(rows) if number in first]
    return comparing, [row for number, row in enumerate(rows) if number not in first]


def draws(
    task: Task, rows: Sequence[Row], count: int | Literal["auto"], room: int
) -> Iterator[list[Row]]:
    """Some draws of ``count`` of the rows, or of ``USUAL``; none where there are too few.

    Args:
        task: without demonstrations.
        room: tokens that a draw may have; none of its rows has more than an equal part. Where there
            are not twice as many so short as are wanted, half as many are, and so on.

    Raises:
        DataError: a row is unusable, or not one fits.
    """
    examples = encode_rows(task, rows)
    wanted = min(USUAL, int(SHOWN * len(rows))) if count == "auto" else count
    if not wanted:
        return
    while True:
        fit = [n for n, each in enumerate(examples) if each.length + _ANSWER <= room // wanted]
        if len(fit) >= 2 * wanted or wanted == 1:
            break
        wanted //= 2
    if not fit:
        raise DataError(
            f"none of the {len(rows)} rows is short enough to be a demonstration ({room} tokens); "
            "leave them out, or export with a larger --prefix"
        )
    golds = {number: examples[number].gold for number in fit}
    for seed in range(DRAWS):
        yield [rows[number] for number in _drawn(golds, wanted, seed)]


def _drawn(golds: Mapping[int, int], count: int, seed: int) -> list[int]:
    """``count`` of the numbers in random order, as many of each label as there can be."""
    words = np.random.Philox(key=np.array([seed, count], np.uint64)).random_raw(len(golds))
    order = [number for _, number in sorted(zip(words.tolist(), golds, strict=True))]
    of_label: Counter[int] = Counter()
    turns = {}
    for number in order:
        turns[number] = of_label[golds[number]]
        of_label[golds[number]] += 1
    first = set(sorted(order, key=turns.__getitem__)[:count])
    return [number for number in order if number in first]


def without(rows: Sequence[Row], shown: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows but for those that are shown, whose answer stands in every prompt."""
    known = {_key(row) for row in shown}
    return [row for row in rows if _key(row) not in known]


def _key(row: Mapping[str, Any]) -> bytes:
    return blake2b(json.dumps(dict(row), sort_keys=True, default=str).encode()).digest()

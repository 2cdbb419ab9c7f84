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
"""Of a task's specification; empty where none are shown."""
USUAL = 8
DRAWS = 4
MOST_COMPARING = 128
"""Rows that compare draws, at most; a quarter of the rows if that is less."""
_ANSWER = 4
"""Tokens of an answer and a line's end behind a demonstration, about."""


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that compare draws, and the others. A row's own content decides, so that a run that is
    resumed has the same others."""
    count = min(MOST_COMPARING, len(rows) // 4)
    first = set(sorted(range(len(rows)), key=lambda number: _key(rows[number]))[:count])
    comparing = [row for number, row in enumerate(rows) if number in first]
    return comparing, [row for number, row in enumerate(rows) if number not in first]


def draws(
    task: Task, rows: Sequence[Row], count: int | Literal["auto"], room: int
) -> Iterator[list[Row]]:
    """Some draws of ``count`` of the rows, each in random order and with as many of each label as
    there can be. Of half as many, and so on, where there are not twice so many short ones.

    Args:
        task: without demonstrations.
        room: tokens that a draw may have; none of its rows has more than an equal part.

    Raises:
        DataError: a row is unusable, or not one fits.
    """
    wanted = USUAL if count == "auto" else count
    golds = encode_rows(task, rows)
    while True:
        short = [n for n, each in enumerate(golds) if each.length + _ANSWER <= room // wanted]
        if len(short) >= 2 * wanted:
            break
        if wanted == 1:
            raise DataError(
                f"none of the {len(rows)} rows is short enough to be a demonstration ({room} "
                "tokens); leave them out, or export with a larger --prefix"
            )
        wanted //= 2
    for seed in range(DRAWS):
        words = np.random.Philox(key=np.array([seed, wanted], np.uint64)).random_raw(len(rows))
        of_label: Counter[int] = Counter()
        turns = []
        for number in sorted(short, key=lambda number: int(words[number])):
            label = golds[number].gold
            turns.append((of_label[label], int(words[number]), number))
            of_label[label] += 1
        drawn = sorted(sorted(turns)[:wanted], key=lambda turn: turn[1])
        yield [rows[number] for _, _, number in drawn]


def without(rows: Sequence[Row], shown: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows but for those that are shown, whose answer stands in every prompt."""
    known = {_key(row) for row in shown}
    return [row for row in rows if _key(row) not in known]


def _key(row: Mapping[str, Any]) -> bytes:
    return blake2b(json.dumps(dict(row), sort_keys=True, default=str).encode()).digest()

"""Content that is damaged or odd in seeded ways, and what a case of ``fuzz`` may end as."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import damaged

REFUSED, EQUAL, SOUND = "refused", "equal", "sound"
"""``SOUND``: accepted with another, well-formed content, whose checksums the case made fit."""

Case = Callable[[random.Random], tuple[str, Callable[[], str]]]
"""From a seeded source of chance to what was done to the file and what reads it, which returns an
outcome."""


def own_file(folder: Path) -> Callable[[str], Path]:
    """Names of files below ``folder`` that the process has for itself."""

    def own(name: str) -> Path:
        place = folder / str(os.getpid())
        place.mkdir(exist_ok=True)
        return place / name

    return own


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    what = []
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if data:
            fault, data = damaged(data, rng)
            what.append(fault)
    return ", ".join(what), data


_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 10**400, -(10**30), 0.5,
    -0.5, 1e308, float("inf"), float("nan"), "", "x", "\ud83d", "x" * 5000, "../x", "\x1b[2J", "\n",
    "0" * 64, [], {}, [[]], [{}], {"a": 1}, [1, "a", None], {"": {"": {}}},
]  # fmt: skip


def odd_json(value: Any, rng: random.Random) -> tuple[str, bytes]:
    """JSON of ``value`` with one or two of its fields odd, gone or deep, or with damaged bytes."""
    value, what = copy.deepcopy(value), []
    for _ in range(rng.choice([1, 1, 2])):
        holders = [(value, key) for key in value] if isinstance(value, dict) else []
        for holder, key in holders:
            inner = holder[key]
            if isinstance(inner, dict):
                holders += [(inner, name) for name in inner]
            elif isinstance(inner, list):
                holders += [(inner, index) for index in range(len(inner))]
        if not holders:
            break
        holder, key = rng.choice(holders)
        way = rng.random()
        if way < 0.1:
            del holder[key]
            what.append(f"{key} gone")
        elif way < 0.15:
            depth = rng.choice([3, 63, 64, 500])
            holder[key] = json.loads("[" * depth + "]" * depth)
            what.append(f"{key} {depth} deep")
        else:
            holder[key] = copy.deepcopy(rng.choice(_ODD))
            what.append(f"{key}={str(holder[key])[:40]!a}")
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    if rng.random() < 0.1:
        fault, text = damaged(text, rng)
        what.append(fault)
    return ", ".join(what), text

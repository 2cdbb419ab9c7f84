"""Content that is damaged or odd in seeded ways, and what a case of ``fuzz`` may end as."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faults import damaged
from numpy.typing import NDArray
from safetensors.numpy import save

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


def odd_tensors(tensors: dict[str, NDArray[Any]], rng: random.Random) -> tuple[str, bytes]:
    """A safetensors file in which one tensor is gone, one more, or of another form or content."""
    found, name = dict(tensors), rng.choice(sorted(tensors))
    tensor = found[name]
    way = rng.choice(["gone", "more", "type", "axes", "size", "number"])
    if way == "gone":
        del found[name]
    elif way == "more":
        found["x"] = np.zeros(3, np.float32)
    elif way == "type":
        kind = rng.choice([np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_])
        with np.errstate(over="ignore", invalid="ignore"):
            found[name] = tensor.astype(kind)
    elif way == "axes":
        found[name] = tensor[None] if rng.random() < 0.5 or not tensor.ndim else tensor[0]
    elif way == "size":
        found[name] = np.resize(tensor, (rng.randrange(9), *tensor.shape[1:]))
    elif tensor.size:
        found[name] = tensor.copy()
        odd = rng.choice([0, -1, np.nan, np.inf, 1e300, 2**62])
        with np.errstate(over="ignore", invalid="ignore"):
            found[name].reshape(-1)[rng.randrange(tensor.size)] = np.asarray(odd).astype(
                tensor.dtype
            )
    return f"{name}: {way}", save({n: np.ascontiguousarray(t) for n, t in found.items()})

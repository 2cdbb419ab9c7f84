"""What JSON from outside must look like: a schema as data, and the one check of it.

Whoever reads a journal, a manifest or metrics first has ``parse_json`` bound what is there at all,
then has ``check`` hold it against a schema, before anything is made from it. A schema is one of

- a type or a tuple of types (``bool`` is never an ``int`` here),
- a mapping from field to schema: an object that has at least these fields,
- ``Whole``, ``Real``, ``Text``, ``Maybe``, ``ListOf``, ``MapOf`` below.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

_DEPTH = 64
_ITEMS = 1 << 20
"""Commas and brackets: with them goes the memory that parsing takes, up to 150 bytes each."""


class Whole(NamedTuple):
    """An integer in ``least..most``."""

    least: int = 0
    most: int = 2**53


class Real(NamedTuple):
    """A finite number in ``least..most``."""

    least: float = -math.inf
    most: float = math.inf


class Text(NamedTuple):
    """A string that the regular expression matches whole."""

    pattern: str = r"[^\x00-\x1f\x7f]{0,1000}"
    said: str = "one line of at most 1000 characters"


class Maybe(NamedTuple):
    """Another schema, or null, or in an object no such field."""

    kind: Any


class ListOf(NamedTuple):
    """A list whose items all fit a schema."""

    kind: Any


class MapOf(NamedTuple):
    """An object with fields of any name whose values all fit a schema."""

    kind: Any


SHA256 = Text(r"[0-9a-f]{64}", "a SHA-256 in hexadecimal")


def parse_json(data: bytes, *, most: int = 1 << 24) -> Any:
    """Parse JSON of up to ``most`` bytes whose numbers, texts and nesting are ordinary.

    Numbers fit 64 bits (integers with or without sign) or float64, texts are valid Unicode, nesting
    ends at 64.

    Raises:
        ValueError: anything else.
    """
    if len(data) > most:
        raise ValueError(f"{len(data)} bytes of JSON, at most {most} are read")
    if sum(map(data.count, (b",", b"[", b"{"))) > _ITEMS:
        raise ValueError(f"more than {_ITEMS} items of JSON")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    _check_ordinary(value)
    return value


def _check_ordinary(value: Any) -> None:
    left = [(value, 1)]
    while left:
        value, depth = left.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"text {value[:40]!a} holds half a character") from None
        elif isinstance(value, (dict, list)):
            if depth > _DEPTH:
                raise ValueError("JSON nested too deeply")
            if isinstance(value, dict):
                left += [(name, depth + 1) for name in value]
                value = value.values()
            left += [(item, depth + 1) for item in value]
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError("a number is beyond float64")
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError("a number is beyond 64 bits")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def check(value: Any, kind: Any, at: str = "") -> None:
    """Hold ``value``, as ``parse_json`` gives it, against a schema; ``at`` names its place.

    Raises:
        ValueError: it does not fit; the message names the field.
    """
    match kind:
        case Maybe(inner):
            if value is not None:
                check(value, inner, at)
        case Whole(least, most):
            _check_type(value, int, at)
            if not least <= value <= most:
                raise ValueError(f"field {at} is {value}, must be in {least}..{most}")
        case Real(least, most):
            _check_type(value, (int, float), at)
            if not (math.isfinite(value) and least <= value <= most):
                raise ValueError(f"field {at} is {value}, must be in {least:g}..{most:g}")
        case Text(pattern, said):
            _check_type(value, str, at)
            if not re.fullmatch(pattern, value):
                raise ValueError(f"field {at} is {value[:80]!r}, must be {said}")
        case ListOf(inner):
            _check_type(value, list, at)
            for number, item in enumerate(value):
                check(item, inner, f"{at}[{number}]")
        case MapOf(inner):
            _check_type(value, dict, at)
            for name, item in value.items():
                check(item, inner, f"{at}.{name}" if at else name)
        case Mapping():
            _check_type(value, dict, at)
            for name, inner in kind.items():
                if name not in value and not isinstance(inner, Maybe):
                    raise ValueError(f"field {at}{'.' * bool(at)}{name} is missing")
                check(value.get(name), inner, f"{at}.{name}" if at else name)
        case _:
            _check_type(value, kind, at)


def _check_type(value: Any, kind: Any, at: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"field {at} has the wrong type" if at else "is not an object")

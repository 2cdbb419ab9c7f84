"""The text of a field of a row, and values as messages name them."""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from ..errors import DataError

LONGEST = 1 << 18
"""Characters of a text that are read: over a hundred times what a program takes. The tokenizer
needs some 100 bytes for each."""
_FIELDS_SHOWN = 12
_DIGITS = 40
_DEEPEST = 64


def field_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field as text: strings as they are, numbers and booleans as JSON writes them.

    Raises:
        DataError: the field is missing, null, not a number, an array or an object, or its text
            is no UTF-8 or longer than ``LONGEST``.
    """
    if name not in row:
        have = [field if _plain(field) else repr(field[:40]) for field in sorted(map(str, row))]
        more = f" and {len(have) - _FIELDS_SHOWN} more" if len(have) > _FIELDS_SHOWN else ""
        shown = ", ".join(have[:_FIELDS_SHOWN]) or "none"
        raise DataError(f"{where}: field {name!r} is missing (fields there: {shown}{more})")
    value = row[name]
    if isinstance(value, np.generic):
        value = value.item()
    what = f"{where}: field {name!r}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        state = "null" if value is None else "not a number, as tables write an empty cell"
        raise DataError(f"{what} is {state}; fill it in or leave the row out")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        check_text(value, what)
        return value
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) < 10**_DIGITS:  # str() refuses thousands of digits
        return str(value)
    raise DataError(f"{what} must be text or a number, not {described(value)}")


def check_text(text: str, what: str) -> None:
    """Refuse text that is no UTF-8, half of a surrogate pair, which tokenizers do not survive; and
    text longer than ``LONGEST``.

    Raises:
        DataError: names the place; ``what`` begins the message.
    """
    if len(text) > LONGEST:
        raise DataError(
            f"{what} has {len(text)} characters, at most {LONGEST} are read; cut it or leave it out"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half a character, {text[error.start]!r} at place {error.start}, which "
            "is no UTF-8; mend it or leave it out"
        ) from error


def strings_in(value: Any) -> Iterator[str]:
    """All text in a row, names of fields included.

    Raises:
        DataError: lists and objects in it are nested too deeply.
    """
    left = [(value, 0)]
    while left:
        part, depth = left.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping | list | tuple | set):
            if depth > _DEEPEST:
                raise DataError(f"a row is nested more than {_DEEPEST} deep; flatten it")
            items = chain.from_iterable(part.items()) if isinstance(part, Mapping) else part
            left += [(item, depth + 1) for item in items]


def described(value: Any) -> str:
    """A value for messages, in a few words: the ``repr`` of one may be endless."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, float):
        return f"the number {value!r}"
    if isinstance(value, int):
        return f"the number {value}" if abs(value) < 10**_DIGITS else "a number of many digits"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"of type {type(value).__name__}"


def _plain(text: str) -> bool:
    return text.isprintable() and len(text) <= 40

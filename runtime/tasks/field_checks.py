"""What the fields of rows and of task specifications may hold, and values as messages name them.

The text of a row's field; a specification's template; and a check for each of its fields, without a
tokenizer. A kind of task lists its fields with one of these checks each. A check takes the field's
name and value and raises a one-line ``DataError`` that names the field.
"""

import math
import string
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from ..errors import DataError

Check = Callable[[str, Any], None]
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


class Template:
    """Text with ``{field}`` places; ``{{`` and ``}}`` stand for braces.

    Raises:
        DataError: the text is not such a template.
    """

    def __init__(self, text: str) -> None:
        self.source = text
        names: list[str] = []
        self.start = ""
        """The text before the first field."""
        try:
            for literal, name, format_spec, conversion in string.Formatter().parse(text):
                if not names:
                    self.start += literal
                if name is None:
                    continue
                if not name.isidentifier() or format_spec or conversion:
                    raise ValueError(f"{name[:40]!r} in braces is not a plain field name")
                names.append(name)
        except ValueError as error:
            raise DataError(f"task: template {text[:60]!r}: {error}") from error
        self.names: tuple[str, ...] = tuple(dict.fromkeys(names))

    def fields_of(self, row: Mapping[str, Any], where: str) -> dict[str, str]:
        """The text of each field that the template names.

        Raises:
            DataError: ``row`` lacks one of them.
        """
        return {name: field_text(row, name, where) for name in self.names}

    def render(self, fields: Mapping[str, str]) -> str:
        """The text with every field in its place."""
        return self.source.format_map(fields)


def name(field: str, value: Any) -> None:
    """The name of a row's field: text that is not blank."""
    _text(f"task: field {field!r}", value)
    if not value.strip():
        raise DataError(f"task: field {field!r} is empty; name a field of the rows")


def template(field: str, value: Any) -> None:
    """A prompt with ``{field}`` places (see ``Template``); may be empty."""
    _text(f"task: field {field!r}", value)
    Template(value)


def flag(field: str, value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise DataError(f"task: field {field!r} must be true or false, not {described(value)}")


def names(field: str, value: Any) -> None:
    """A list of at least two field names, none twice."""
    if not isinstance(value, list | tuple):
        raise DataError(f"task: field {field!r} must be a list, not {described(value)}")
    for item in value:
        if not isinstance(item, str):
            raise DataError(f"task: field {field!r} must hold text only, not {described(item)}")
        name(field, item)
    if len(value) < 2:
        raise DataError(f"task: {field} must name at least two fields")
    for number, item in enumerate(value):
        if item in value[:number]:
            raise DataError(f"task: {field} names {item[:40]!r} twice")


def verbalisers(field: str, value: Any) -> None:
    """At least two labels with the text that stands for each, none blank and no two alike."""
    if not isinstance(value, Mapping):
        raise DataError(
            f'task: field {field!r} must be an object such as {{"0": " no", "1": " yes"}}, '
            f"not {described(value)}"
        )
    label_of: dict[str, str] = {}
    for label, word in value.items():
        for item in (label, word):
            if not isinstance(item, str):
                raise DataError(f"task: field {field!r} must hold text only, not {described(item)}")
        _text(f"task: a label of {field}", label)
        what = f"task: the word for label {label[:40]!r} of {field}"
        _text(what, word)
        if not word.strip():
            raise DataError(f"{what} is empty; write the text that continues the prompt")
        if word in label_of:
            raise DataError(f"{what} is that of label {label_of[word][:40]!r}, too: {word[:40]!r}")
        label_of[word] = label
    if len(value) < 2:
        raise DataError(f"task: {field} must name at least two labels")


def rows(field: str, value: Any) -> None:
    """A list of at least one row, each an object."""
    if not isinstance(value, list | tuple) or not value:
        raise DataError(
            f"task: field {field!r} must be a list of rows, such as "
            f'[{{"text": "what fun", "label": "1"}}], not {described(value)}'
        )
    for item in value:
        if not isinstance(item, Mapping):
            raise DataError(f"task: field {field!r} must hold objects, not {described(item)}")


def _text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise DataError(f"{what} must be text, not {described(value)}")
    check_text(value, what)

"""What the fields of a task specification may hold, checked without a tokenizer; its template.

A kind lists its fields with one of these checks each. A check takes the field's name and value and
raises a one-line ``DataError`` that names the field.
"""

import string
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import DataError
from .field_text import check_text, described, field_text

Check = Callable[[str, Any], None]


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

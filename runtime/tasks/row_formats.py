"""Rows in text files: JSON lines, a JSON list, comma- or tab-separated, and lines of text.

A reader takes the file's text and name and yields the fields of each row with its ``file:line``.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ..errors import DataError

Fields = Iterator[tuple[dict[str, Any], str]]
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_MOST_DIGITS = 40


def strict_json(text: str, where: str) -> Any:
    """JSON as its standard has it: no NaN, no infinity, no number beyond all use.

    Raises:
        DataError: not JSON, or nested too deeply; ``where`` begins the message.
    """
    try:
        return json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_of_some_digits
        )
    except RecursionError:
        raise DataError(f"{where}: not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def jsonl_rows(text: str, name: str) -> Fields:
    """One object a line; blank lines are passed over."""
    # Not splitlines(): JSON strings may hold the other characters that it splits at.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name}:{number}"
            yield _object(strict_json(line, where), where, "a JSON object, one a line"), where


def json_rows(text: str, name: str) -> Fields:
    """One list of objects."""
    if not text.strip():
        return
    try:
        found = strict_json(text, name)
    except DataError as error:
        if "Extra data" in str(error):
            raise DataError(f"{error}; with one object a line, name it .jsonl") from error
        raise
    if not isinstance(found, list):
        raise DataError(
            f"{name}: must be a list of objects; with one object a line, name it .jsonl"
        )
    for number, item in enumerate(found, 1):
        where = f"{name} row {number}"
        yield _object(item, where, "an object with the row's fields"), where


def csv_rows(text: str, name: str) -> Fields:
    """Cells under a header, separated by what separates the header."""
    # The header may be quoted, and then span lines: parsed rather than searched.
    possible = [mark for mark in _DELIMITERS if _header_cells(text, mark) > 1]
    if len(possible) > 1:
        marks = " and at ".join(_DELIMITERS[mark] for mark in possible)
        raise DataError(
            f"{name}:1: the header can be split at {marks}; put column names that hold one into "
            'double quotes ("), or rename the columns'
        )
    return _separated(text, name, possible[0] if possible else ",")


def tsv_rows(text: str, name: str) -> Fields:
    """Cells under a header, separated by tabs and quoted as in ``.csv``."""
    return _separated(text, name, "\t")


def txt_rows(text: str, name: str) -> Fields:
    """One text a line, as the field ``text``; blank lines are passed over."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield {"text": line.removesuffix("\r")}, f"{name}:{number}"


FORMATS: dict[str, Callable[[str, str], Fields]] = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".txt": txt_rows,
}
"""File ending to reader."""


def _object(value: Any, where: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be {what}")
    return value


def _header_cells(text: str, delimiter: str) -> int:
    try:
        return len(next(filter(None, _cells(text, delimiter)), []))
    except csv.Error:
        return 0


def _cells(text: str, delimiter: str) -> Any:
    # strict: an unclosed quote is an error, not a cell that swallows the rest of the file.
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _separated(text: str, name: str, delimiter: str) -> Fields:
    reader = _cells(text, delimiter)
    header: list[str] | None = None
    number = 1
    try:
        for cells in reader:
            where = f"{name}:{number}"  # where the row begins; cells may span lines
            number = reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header) or not all(header):
                    raise DataError(f"{where}: the header has an empty or repeated column name")
                continue
            if len(cells) != len(header):
                raise DataError(f"{where}: has {len(cells)} cells, the header {len(header)}")
            yield dict(zip(header, cells, strict=True)), where
    except csv.Error as error:
        remedy = "a cell that begins with a double quote must end with one, and those within are "
        remedy += "doubled"
        if "field limit" in str(error):
            remedy += f"; cells over {csv.field_size_limit():,} characters are read from .jsonl"
        raise DataError(f"{name}:{number}: not CSV ({error}); {remedy}") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number; write null or leave the row out")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:_MOST_DIGITS]} is too large")
    return value


def _of_some_digits(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits; write it as text in quotes")
    return int(text)

"""Rows of data: from files of many formats, from standard input, or as dicts."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from .field_text import described, strings_in
from .row_formats import FORMATS, jsonl_rows
from .row_tables import dataset_rows, parquet_rows

MAX_ROWS, MAX_CHARACTERS = 1_000_000, 1 << 28
"""All rows are held in memory, encoded; a run sees ``batch_size`` of them a step."""
MAX_BYTES = 1 << 30
"""Of a file that is not a table."""
_PIECE = 1 << 20


class Row(dict[str, Any]):
    """The fields of one row, and where it stands."""

    where: str
    """``file:line`` or ``file row number``, for messages."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where


def read_rows(source: str | Path | Iterable[Mapping[str, Any]], name: str = "row") -> list[Row]:
    """Read rows from a file, or take those that are given.

    Args:
        source: a file, told by its ending: ``.jsonl`` (one object a line), ``.json`` (a list of
            objects), ``.csv`` (with a header; comma, semicolon or tab), ``.tsv``, ``.txt`` (one
            text a line, as the field ``text``), ``.parquet``; a folder that Hugging Face's
            ``datasets`` saved; ``-`` for JSON lines on standard input; or dicts.
        name: what a dict is called in messages, before its number; a ``Row`` has its own.

    Raises:
        DataError: unreadable, empty, another ending, more than ``MAX_ROWS`` or
            ``MAX_CHARACTERS``, or a row that is not an object or has another number of cells than
            the header; the message names file and line.
    """
    if not isinstance(source, str | Path):
        return _within_cap(_given(source, name), "the rows")
    file = str(source)
    rows = _within_cap(_read(Path(source)), file)
    if not rows:
        raise DataError(f"{file}: no rows; the file is empty")
    return rows


def _within_cap(rows: Iterator[Row], what: str) -> list[Row]:
    found: list[Row] = []
    characters = 0
    for row in rows:
        characters += sum(len(text) for text in strings_in(list(row.values())))
        over = f"{MAX_ROWS} rows" if len(found) == MAX_ROWS else ""
        over = over or (f"{MAX_CHARACTERS} characters" if characters > MAX_CHARACTERS else "")
        if over:
            raise DataError(
                f"{what}: more than {over}, all of which would be held in memory; draw a part of "
                "them at random, such as with shuf -n"
            )
        found.append(row)
    return found


def _given(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Row]:
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise DataError(
            f"rows must be a list of dicts or a file, not {described(rows)}; put a single row in "
            "brackets"
        )
    for number, row in enumerate(rows, 1):
        if isinstance(row, Row):
            yield row
            continue
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name} {number}: must be a dict with the task's fields, not {described(row)}"
            )
        yield Row(row, f"{name} {number}")


def _read(path: Path) -> Iterator[Row]:
    ending = path.suffix.lower()
    if str(path) == "-":
        fields = jsonl_rows(_text(sys.stdin.buffer, "stdin"), "stdin")
    elif os.path.isdir(path):
        fields = dataset_rows(path)
    elif ending == ".parquet":
        fields = parquet_rows(path)
    elif ending in FORMATS:
        try:
            with path.open("rb") as file:
                text = _text(file, str(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read: {reason}") from error
        fields = FORMATS[ending](text, str(path))
    else:
        known = ", ".join([*FORMATS, ".parquet"])
        raise DataError(f"{path}: cannot tell the format; name it by one of {known}")
    for found, where in fields:
        yield Row(found, where)


def _text(stream: IO[bytes], what: str) -> str:
    """All of it, read in pieces: asked for as many bytes as it may have, a file takes their memory
    before it looks how many there are."""
    data = bytearray()
    while piece := stream.read(_PIECE):
        data += piece
        if len(data) > MAX_BYTES:
            raise DataError(f"{what}: has more than {MAX_BYTES} bytes; give a part of its rows")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{what}:{line}: not UTF-8 text; save the file as UTF-8") from error

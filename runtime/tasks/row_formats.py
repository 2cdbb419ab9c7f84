"""Rows in files: JSON lines, a JSON list, comma- or tab-separated, lines of text, and Parquet.

A reader of text takes it and the file's name, and yields the fields of each row with its
``file:line``. That of Parquet takes the file; it needs pyarrow, which a device need not have.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..errors import DataError
from .field_checks import LONGEST

Fields = Iterator[tuple[dict[str, Any], str]]
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_MOST_DIGITS = 40
_ROWS_AT_ONCE = 64
_MOST_VALUES, _MOST_BYTES = 1 << 26, 1 << 30
"""Of all columns of a file together, decoded as they are stored."""
_LONGEST_BYTES = 4 * LONGEST
_NO_UTF8 = re.compile(r"Invalid UTF8 sequence at string index (\d+)")


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
"""File ending to reader of text."""


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


def parquet_rows(path: Path) -> Fields:
    """Rows of a Parquet file.

    Raises:
        DataError: pyarrow is missing, or the file is missing, damaged, or holds text that is no
            UTF-8.
    """
    pyarrow = _pyarrow(path)
    from pyarrow.parquet import ParquetFile

    def batches() -> Iterator[Any]:
        with ParquetFile(path) as file:
            groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
            columns = [file.schema.column(n) for n in range(len(file.schema))]
            # What a group says of a column is asked only where it must be: of a damaged file arrow
            # ends the process there.
            values = [
                group.column(n).num_values if column.max_repetition_level else group.num_rows
                for group in groups
                for n, column in enumerate(columns)
            ]
        for what, count, most in (
            ("values", sum(values), _MOST_VALUES),
            ("bytes", sum(group.total_byte_size for group in groups), _MOST_BYTES),
        ):
            if count > most:
                raise DataError(f"{path}: holds {count} {what}, at most {most} are read; cut it")
        # As dictionaries, texts that are repeated are held once.
        names = list({column.path for column in columns})
        with ParquetFile(path, read_dictionary=names) as file:
            yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)

    return _rows(batches(), path, pyarrow)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: to read it, pip install pyarrow") from None
    return pyarrow


def _rows(batches: Iterable[Any], path: Path, pyarrow: Any) -> Fields:
    number = 0
    try:
        for batch in batches:
            names = batch.schema.names
            if len(set(names)) < len(names):
                raise DataError(f"{path}: has a repeated column name")
            for name, column in zip(names, batch.columns, strict=True):
                _check(column, f"field {name!r}", path, number, pyarrow)
            for first in range(0, len(batch), _ROWS_AT_ONCE):
                for fields in batch.slice(first, _ROWS_AT_ONCE).to_pylist():
                    number += 1
                    yield fields, f"{path} row {number}"
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: damaged, or of an unknown kind ({_reason(error)})") from error


def _check(column: Any, what: str, path: Path, before: int, pyarrow: Any) -> None:
    """Refuse a column that is no UTF-8, or that arrow would read outside its memory for."""
    try:
        column.validate(full=True)
    except pyarrow.ArrowException as error:
        found = _NO_UTF8.search(str(error))
        if found is None:
            rows = f"rows {before + 1} to {before + len(column)}"
            raise DataError(f"{path} {rows}: {what} is damaged ({_reason(error)})") from error
        raise DataError(
            f"{path} row {before + int(found[1]) + 1}: {what} is no UTF-8 text; mend it or leave "
            "the row out"
        ) from error
    longest = _longest_text(column, pyarrow)
    if longest > _LONGEST_BYTES:
        raise DataError(
            f"{path} rows {before + 1} to {before + len(column)}: {what} holds a text of {longest} "
            f"bytes, at most {LONGEST} characters are read; cut it, or leave the row out"
        )


def _longest_text(column: Any, pyarrow: Any) -> int:
    """Bytes of the longest text in a column, within its lists and structs."""
    import pyarrow.compute as compute

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        return _longest_text(column.dictionary, pyarrow)
    if pyarrow.types.is_struct(kind):
        parts = [column.field(number) for number in range(kind.num_fields)]
    elif hasattr(column, "values") and pyarrow.types.is_nested(kind):
        parts = [column.values]
    elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return compute.max(compute.binary_length(column)).as_py() or 0
    else:
        return 0
    return max((_longest_text(part, pyarrow) for part in parts), default=0)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

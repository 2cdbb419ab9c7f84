"""Rows in Parquet files.

Needs pyarrow, which a device need not have. Yields the fields of each row with ``file row number``.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .field_text import LONGEST
from .row_formats import Fields

_ROWS_AT_ONCE = 64
_MOST_VALUES, _MOST_BYTES = 1 << 26, 1 << 30
"""Of all columns of a file together, decoded as they are stored."""
_LONGEST_BYTES = 4 * LONGEST
_NO_UTF8 = re.compile(r"Invalid UTF8 sequence at string index (\d+)")


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

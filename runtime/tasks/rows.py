"""Rows of training and evaluation data from JSONL or CSV files."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..errors import DataError


class Row(dict[str, Any]):
    """The fields of one row, and where it stands."""

    where: str
    """``file:line``, for messages."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where


def read_rows(path: str | Path) -> list[Row]:
    """Read a ``.jsonl`` file (one object a line) or a ``.csv`` file (with a header).

    Raises:
        DataError: unreadable, empty, another suffix, or a row that is not an object or has
            another number of cells than the header; the message names file and line.
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot tell the format; name it {' or '.join(readers)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; convert the file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    rows = reader(text, path)
    if not rows:
        raise DataError(f"{path}: no rows; the file is empty")
    return rows


def _read_jsonl(text: str, path: Path) -> list[Row]:
    rows = []
    # Not splitlines(): JSON strings may hold the other characters that it splits at.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise DataError(f"{where}: must be a JSON object, one a line")
        rows.append(Row(fields, where))
    return rows


def _read_csv(text: str, path: Path) -> list[Row]:
    # strict: an unclosed quote is an error, not a cell that swallows the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    header: list[str] | None = None
    number = 1
    try:
        for cells in reader:
            where = f"{path}:{number}"  # where the row begins; cells may span lines
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
            rows.append(Row(dict(zip(header, cells, strict=True)), where))
    except csv.Error as error:
        raise DataError(f"{path}:{number}: not CSV ({error})") from error
    return rows

"""Rows of data, from files of many formats, from standard input or as dicts, and as examples."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import DataError, warn
from ..hub import local_file
from .field_checks import described, strings_in
from .row_formats import FORMATS, jsonl_rows, parquet_rows
from .task import Encoded, Task, TooLong
from .tokenising import Watch, watched

Rows = str | Path | Iterable[Mapping[str, Any]]
"""A file of rows (see ``read_rows``), or the rows themselves as dicts."""
Kind = TypeVar("Kind")
MAX_ROWS, MAX_CHARACTERS = 1_000_000, 1 << 28
"""All rows are held in memory, encoded; a run sees ``batch_size`` of them a step."""
MAX_BYTES = 1 << 30
"""Most bytes of a file that is not a table."""
_SHOWN = 3
_PIECE = 1 << 20


class Row(dict[str, Any]):
    """The fields of one row, and where it stands."""

    where: str
    """``file:line`` or ``file row number``, for messages."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where


def read_rows(source: Rows, name: str = "row") -> list[Row]:
    """Read rows from a file, or take those that are given.

    Args:
        source: a file, told by its ending: ``.jsonl`` (one object a line), ``.json`` (a list of
            objects), ``.csv`` (with a header; comma, semicolon or tab), ``.tsv``, ``.txt`` (one
            text a line, as the field ``text``), ``.parquet``; ``-`` for JSON lines on standard
            input; a file on the Hugging Face hub, ``hf://datasets/owner/name[@revision]/path``; or
            dicts.
        name: what a dict is called in messages, before its number; a ``Row`` has its own.

    Raises:
        DataError: unreadable, empty, another ending, more than ``MAX_ROWS`` or
            ``MAX_CHARACTERS``, or a row that is not an object or has another number of cells than
            the header; the message names file and line.
        DownloadError: the hub does not deliver it.
    """
    if not isinstance(source, str | Path):
        return _within_cap(_given(source, name), "the rows")
    file = str(source)
    rows = _within_cap(_read(local_file(source)), file)
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
        raise DataError(
            f"{path}: is a folder; give a file of rows (Hugging Face's datasets write one with "
            "to_parquet)"
        )
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


def encode_rows(task: Task, rows: Rows, *, labelled: bool = True) -> list[Encoded]:
    """Encode rows: dicts, ``Row`` objects or a file of them (see ``read_rows``).

    Args:
        labelled: False leaves the label out, for prediction.

    Raises:
        DataError: see ``read_rows`` and ``Task.encode``; names the row by its ``where``, or by its
            number from 1, and of rows that are too long how many there are.
    """
    return _each(task, rows, lambda row: task.encode(row, row.where, labelled=labelled))


def encode_questions(task: Task, rows: Rows) -> list[Encoded | list[int]]:
    """Encode rows for prediction: as examples without a label, but a row whose answer is to be
    written as the tokens that it is to go on from.

    Raises:
        DataError: as ``encode_rows``.
    """

    def encode(row: Row) -> Encoded | list[int]:
        prompt = task.prompt(row, row.where)
        return task.encode(row, row.where, labelled=False) if prompt is None else prompt

    return _each(task, rows, encode)


def _each(task: Task, rows: Rows, encode: Callable[[Row], Kind]) -> list[Kind]:
    given, names, empty = read_rows(rows), task.template.names, []
    long: list[tuple[str, TooLong]] = []

    def work(watch: Watch) -> list[Kind]:
        found = []
        for row in given:
            watch.at(row.where)
            try:
                found.append(encode(row))
            except TooLong as error:
                long.append((row.where, error))
                continue
            if names and not any(str(row[name]).strip() for name in names):
                empty.append(row.where)
        return found

    examples = watched(work, "rows")
    if len(long) == 1:
        raise long[0][1]
    if long:
        shown = ", ".join(where for where, _ in long[:_SHOWN])
        more = ", ..." if len(long) > _SHOWN else ""
        longest = max(long, key=lambda each: each[1].tokens)[1]
        what = f"{len(long)} of {len(given)} rows are too long ({shown}{more})"
        raise TooLong(what, longest.tokens, longest.bound)
    if empty:
        more = f" and {len(empty) - 1} more rows" if len(empty) > 1 else ""
        warn(
            f"{empty[0]}{more}: no text in {', '.join(task.template.names)}; leave such rows out: "
            "they teach and measure the template alone"
        )
    return examples


def need_labels(examples: Sequence[Encoded], what: str) -> None:
    """Refuse examples that were encoded for prediction, where each must have its right answer.

    Raises:
        DataError: one has no label; names it by ``what`` and its number from 1.
    """
    for number, example in enumerate(examples, 1):
        if example.gold < 0:
            raise DataError(
                f"{what} {number}: has no label, as it was encoded for prediction; encode it with "
                "its label"
            )


def warn_of_examples(task: Task, train: Sequence[Encoded], held_out: Sequence[Encoded]) -> None:
    """Warn where all training examples have one label, or where held-out ones are among them."""
    golds = {example.gold for example in train}
    if len(task.labels) > 1 and len(golds) == 1:
        label = task.labels[golds.pop()]
        warn(
            f"all {len(train)} training rows have the label {label[:40]!r}: a run learns to say it "
            "always; add rows with the other labels"
        )
    trained = {example.tokens.tobytes() for example in train}
    both = sum(example.tokens.tobytes() in trained for example in held_out)
    if both:
        warn(
            f"{both} of {len(held_out)} held-out rows are training rows, too, and say nothing of "
            "new ones; take them out of one of the two"
        )

"""Data files: every defect is named with its file and line."""

from pathlib import Path

import pytest
from seedtune.runtime.errors import DataError
from seedtune.runtime.tasks import encode_rows, read_rows, task_from_spec
from tiny_bundle import BOUNDS, TASK, tiny_tokenizer


def write(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_jsonl(tmp_path: Path) -> None:
    file = write(
        tmp_path, "d.jsonl", '{"a": "x\\u2028y", "b": 1}\n\n{"a": "\u2028", "b": null}\r\n'
    )
    rows = read_rows(file)
    assert rows == [{"a": "x\u2028y", "b": 1}, {"a": "\u2028", "b": None}]
    assert [row.where for row in rows] == [f"{file}:1", f"{file}:3"]


def test_csv(tmp_path: Path) -> None:
    file = write(tmp_path, "d.CSV", '\ufefftext,label\n"two\nlines, ""quoted""",1\n\nx\u2028y,0\n')
    rows = read_rows(str(file))
    assert rows == [
        {"text": 'two\nlines, "quoted"', "label": "1"},
        {"text": "x\u2028y", "label": "0"},
    ]
    assert [row.where for row in rows] == [f"{file}:2", f"{file}:5"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", "", "no rows; the file is empty"),
        ("d.jsonl", "\n \n", "no rows"),
        ("d.csv", "", "no rows"),
        ("d.csv", "text,label\n", "no rows"),
        ("d.jsonl", '{"a": 1}\n{"a": \n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", '{"a": 1}\n[1]\n', r"d\.jsonl:2: must be a JSON object"),
        ("d.jsonl", "[" * 100_000, r"d\.jsonl:1: not JSON"),
        ("d.jsonl", b'{"a": 1}\n\n\xff', r"d\.jsonl:3: not UTF-8"),
        ("d.csv", "a,b\n1,2\n1,2,3\n", r"d\.csv:3: has 3 cells, the header 2"),
        ("d.csv", "a,b\n1\n", r"d\.csv:2: has 1 cells"),
        ("d.csv", "a,a\n1,2\n", r"d\.csv:1: the header has an empty or repeated"),
        ("d.csv", 'a,b\n1,2\n"open,2\n3,4\n', r"d\.csv:3: not CSV"),
        ("d.txt", "a", r"d\.txt: cannot tell the format; name it \.jsonl or \.csv"),
    ],
)
def test_defects_are_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_rows(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d\.csv: cannot be read: No such file"):
        read_rows(tmp_path / "d.csv")


def test_a_row_that_cannot_be_encoded_is_named_by_its_line(tmp_path: Path) -> None:
    task = task_from_spec(TASK, tiny_tokenizer(), BOUNDS, 0)
    file = write(tmp_path, "d.csv", "text,label\nthe film,1\n\nthe plot,2\n")
    with pytest.raises(DataError, match=rf"{file}:4: unknown label '2'"):
        encode_rows(task, read_rows(file))
    assert [e.gold for e in encode_rows(task, read_rows(file), labelled=False)] == [-1, -1]

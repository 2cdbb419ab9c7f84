"""Data files: every format is read, every defect is named with its file and line."""

import io
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from seedtune.runtime.errors import DataError
from seedtune.runtime.tasks import encode_rows, read_rows, row_formats, rows, task_from_spec
from seedtune.runtime.tasks.field_checks import LONGEST
from tiny_bundle import BOUNDS, TASK, tiny_tokenizer


def write(folder, name, text):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def write_parquet(file, columns):
    return written(file, pyarrow.table(columns))


def written(file, table):
    pyarrow.parquet.write_table(table, file)
    return file


def test_jsonl(tmp_path):
    file = write(
        tmp_path, "d.jsonl", '{"a": "x\\u2028y", "b": 1}\n\n{"a": "\u2028", "b": null}\r\n'
    )
    found = read_rows(file)
    assert found == [{"a": "x\u2028y", "b": 1}, {"a": "\u2028", "b": None}]
    assert [row.where for row in found] == [f"{file}:1", f"{file}:3"]


def test_json(tmp_path):
    file = write(tmp_path, "d.json", '[{"a": "x", "b": 1},\n {"a": "y"}]')
    found = read_rows(file)
    assert found == [{"a": "x", "b": 1}, {"a": "y"}]
    assert [row.where for row in found] == [f"{file} row 1", f"{file} row 2"]


def test_csv(tmp_path):
    file = write(tmp_path, "d.CSV", '\ufefftext,label\n"two\nlines, ""quoted""",1\n\nx\u2028y,0\n')
    found = read_rows(str(file))
    assert found == [
        {"text": 'two\nlines, "quoted"', "label": "1"},
        {"text": "x\u2028y", "label": "0"},
    ]
    assert [row.where for row in found] == [f"{file}:2", f"{file}:5"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", "text;label\na, b;1\n"),
        ("d.csv", "text\tlabel\r\na, b\t1\r\n"),
        ("d.csv", 'text;label\n"a, b";1\n'),
        ("d.csv", 'text,label\r"a, b",1\r'),
        ("d.tsv", "text\tlabel\na, b\t1\n"),
        ("d.tsv", 'text\tlabel\n"a, b"\t1\n'),
    ],
)
def test_delimiters_are_found_by_the_header(tmp_path, name, text):
    assert read_rows(write(tmp_path, name, text)) == [{"text": "a, b", "label": "1"}]


def test_a_header_with_a_quoted_delimiter_or_of_one_column(tmp_path):
    assert read_rows(write(tmp_path, "d.csv", '"a;b",c\n1,2\n')) == [{"a;b": "1", "c": "2"}]
    assert read_rows(write(tmp_path, "d.csv", "text\nso; it is\n")) == [{"text": "so; it is"}]


def test_txt(tmp_path):
    file = write(tmp_path, "d.txt", "\ufeffone, text\r\n\n  {two} \u2028\n")
    found = read_rows(file)
    assert found == [{"text": "one, text"}, {"text": "  {two} \u2028"}]
    assert [row.where for row in found] == [f"{file}:1", f"{file}:3"]


def test_parquet(tmp_path):
    columns = {"text": [f"t{n}" for n in range(2000)], "label": [n % 2 for n in range(2000)]}
    file = write_parquet(tmp_path / "d.parquet", columns)
    found = read_rows(file)
    assert found[1500] == {"text": "t1500", "label": 0}
    assert (len(found), found[1500].where) == (2000, f"{file} row 1501")


def test_standard_input(monkeypatch):
    def given_input(data):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    given_input(b'{"text": "a"}\n{"text": "b"}\n')
    found = read_rows("-")
    assert (found, found[1].where) == ([{"text": "a"}, {"text": "b"}], "stdin:2")
    given_input(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="stdin:2: not UTF-8"):
        read_rows(Path("-"))
    given_input(b"")
    with pytest.raises(DataError, match="-: no rows"):
        read_rows("-")


def test_dicts():
    found = read_rows({"text": text} for text in "ab")
    assert found == [{"text": "a"}, {"text": "b"}]
    assert [row.where for row in found] == ["row 1", "row 2"]
    assert read_rows(found)[1].where == "row 2"
    assert read_rows([]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "a"}, "must be a list of dicts or a file, not an object; put a single row in br"),
        (3, "must be a list of dicts or a file, not the number 3"),
        (None, "not null"),
        ([{"text": "a"}, "b"], "row 2: must be a dict with the task's fields, not 'b'"),
        ([["a"]], "row 1: must be a dict with the task's fields, not a list"),
    ],
)
def test_what_is_no_dicts(given, message):
    with pytest.raises(DataError, match=message):
        read_rows(given)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", "", "no rows; the file is empty"),
        ("d.jsonl", "\n \n", "no rows"),
        ("d.json", " ", "no rows"),
        ("d.json", "[]", "no rows"),
        ("d.txt", "\n", "no rows"),
        ("d.csv", "", "no rows"),
        ("d.csv", "text,label\n", "no rows"),
        ("d.jsonl", '{"a": 1}\n{"a": \n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", '{"a": 1}\n[1]\n', r"d\.jsonl:2: must be a JSON object"),
        ("d.jsonl", "[" * 100_000, r"d\.jsonl:1: not JSON that can be read: nested too deeply"),
        ("d.jsonl", '{"a":' * 100_000, r"d\.jsonl:1: not JSON that can be read: nested too deep"),
        ("d.jsonl", '{"a": NaN}', r"d\.jsonl:1: not JSON \(NaN is no number; write null"),
        ("d.jsonl", '{"a": -Infinity}', r"d\.jsonl:1: not JSON \(-Infinity is no number"),
        ("d.jsonl", '{"a": 1e999}', r"d\.jsonl:1: not JSON \(number 1e999 is too large"),
        ("d.jsonl", '{"a": ' + "9" * 9000 + "}", r"d\.jsonl:1: .*9000 digits; write it as text"),
        ("d.jsonl", b'{"a": 1}\n\n\xff', r"d\.jsonl:3: not UTF-8 text; save the file as UTF-8"),
        ("d.json", '{"a": 1}\n{"a": 2}', r"d\.json: not JSON .*; .*, name it \.jsonl"),
        ("d.json", '{"a": 1}', r"d\.json: must be a list of objects"),
        ("d.json", '[{"a": 1}, 2]', r"d\.json row 2: must be an object"),
        ("d.csv", "a,b\n1,2\n1,2,3\n", r"d\.csv:3: has 3 cells, the header 2"),
        ("d.csv", "a,b\n1\n", r"d\.csv:2: has 1 cells"),
        ("d.csv", "a,a\n1,2\n", r"d\.csv:1: the header has an empty or repeated"),
        ("d.csv", 'a,b\n1,2\n"open,2\n3,4\n', r"d\.csv:3: not CSV"),
        ("d.csv", "a,b;c\n1,2;3\n", r"d\.csv:1: the header can be split at comma and at semicolon"),
        ("d.csv", "a\tb;c\n", r"d\.csv:1: the header can be split at semicolon and at tab"),
        ("d.tsv", 'a\tb\n"so" it is\t2\n', r"d\.tsv:2: not CSV .*begins with a double quote must"),
        (
            "d.csv",
            f"a,b\n1,{'x' * 140_000}\n",
            r"d\.csv:2: not CSV .*cells over 131,072 characters are read from",
        ),
        ("d.parquet", b"PAR1 not", r"d\.parquet: damaged, or of an unknown kind"),
        (
            "d.xlsx",
            "a",
            r"d\.xlsx: cannot tell the format; name it by one of \.jsonl, ",
        ),
    ],
)
def test_defects_are_named(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_rows(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"is a folder; give a file of rows .*to_parquet"):
        read_rows(tmp_path)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: cannot be read: .*[Nn]o such file"):
        read_rows(tmp_path / name)


def test_text_in_a_table_that_is_no_utf8_names_row_and_field(tmp_path):
    texts = pyarrow.array([b"good", b"\xff\xfe"]).view(pyarrow.string())
    file = write_parquet(tmp_path / "d.parquet", {"label": [1, 0], "text": texts})
    with pytest.raises(DataError, match=r"d\.parquet row 2: field 'text' is no UTF-8 text"):
        read_rows(file)


def test_repeated_columns_of_a_table_are_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match="has a repeated column name"):
        read_rows(written(tmp_path / "d.parquet", table))


def test_without_pyarrow_the_package_is_named(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "d.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=f"^{file}: to read it, pip install pyarrow$"):
        read_rows(file)


def test_more_rows_than_memory_should_hold_are_refused(tmp_path, monkeypatch):
    assert rows.MAX_ROWS == 1_000_000
    monkeypatch.setattr(rows, "MAX_ROWS", 3)
    assert len(read_rows(write(tmp_path, "d.txt", "a\n" * 3))) == 3
    with pytest.raises(DataError, match=r"d\.txt: more than 3 rows, .*; draw a part of them"):
        read_rows(write(tmp_path, "d.txt", "a\n" * 4))

    def endless():
        while True:
            yield {"text": "a"}

    with pytest.raises(DataError, match="the rows: more than 3 rows"):
        read_rows(endless())


def test_a_text_or_a_file_beyond_all_use_is_refused(tmp_path, monkeypatch):
    task = task_from_spec(TASK, tiny_tokenizer(), BOUNDS, 0, on_long="truncate")
    rows_of = [{"text": "a", "label": "1"}, {"text": "so " * (LONGEST // 3 + 1), "label": "0"}]
    with pytest.raises(DataError, match=r"^row 2: field 'text' has 262146 characters, at most"):
        encode_rows(task, rows_of)
    rows_of[1]["text"] = "so " * (LONGEST // 3)
    assert encode_rows(task, rows_of)[1].length <= BOUNDS.length

    monkeypatch.setattr(rows, "MAX_CHARACTERS", 99)
    file = write(tmp_path, "d.jsonl", '{"text": "the film was good"}\n' * 6)
    with pytest.raises(DataError, match=r"d\.jsonl: more than 99 characters.*shuf"):
        read_rows(file)
    nested = {"m": [{"content": "the film was good"}] * 6}
    with pytest.raises(DataError, match=r"^the rows: more than 99 characters"):
        read_rows([nested])
    monkeypatch.setattr(rows, "MAX_BYTES", 99)
    with pytest.raises(DataError, match=r"d\.jsonl: has more than 99 bytes"):
        read_rows(file)
    assert len(read_rows(write(tmp_path, "e.txt", "so\n" * 33))) == 33


def test_a_small_file_takes_little_memory(tmp_path, monkeypatch):
    """Not what a file may have at most, which a phone has not."""
    content = '{"text": "the film was good"}\n' * 6
    file = write(tmp_path, "d.jsonl", content)
    stdin = SimpleNamespace(buffer=io.BufferedReader(io.FileIO(file)))
    monkeypatch.setattr(sys, "stdin", stdin)
    tracemalloc.start()
    try:
        assert len(read_rows(file)) == len(read_rows("-")) == 6
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["text", "list", "struct"])
def test_a_small_table_of_huge_texts_is_refused_before_it_expands(tmp_path, kind):
    texts = pyarrow.array(["a" * (4 * LONGEST + 1)])
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4096, "int32"), texts)
    column = {
        "text": repeated,
        "list": pyarrow.ListArray.from_arrays(pyarrow.array(range(4097), "int32"), repeated),
        "struct": pyarrow.StructArray.from_arrays([repeated], ["content"]),
    }[kind]
    file, before = tmp_path / "d.parquet", pyarrow.total_allocated_bytes()
    pyarrow.parquet.write_table(pyarrow.table({"m": column}), file, compression="zstd")
    assert file.stat().st_size < 10_000
    match = r"d\.parquet rows 1 to \d+: field 'm' holds a text of 1048577 bytes"
    with pytest.raises(DataError, match=match):
        read_rows(file)
    assert pyarrow.total_allocated_bytes() - before < 50e6


def test_a_table_of_more_values_than_are_read_is_refused(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "d.parquet", {"text": ["a"] * 40, "n": [[1, 2]] * 40})
    assert len(read_rows(file)) == 40
    for name, what in (("_MOST_VALUES", "120 values"), ("_MOST_BYTES", r"\d+ bytes")):
        with monkeypatch.context() as patched:
            patched.setattr(row_formats, name, 99)
            with pytest.raises(DataError, match=rf"d\.parquet: holds {what}, at most 99 are read"):
                read_rows(file)

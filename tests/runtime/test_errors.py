"""Messages stay one line, whatever came into them from files and libraries."""

import warnings
from pathlib import Path

import pytest
from seedtune.runtime.errors import DataError, JournalError, SeedtuneWarning, warn
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.tasks import read_rows


def test_a_message_neither_breaks_its_line_nor_moves_the_cursor():
    assert str(DataError("a\nb\x1b[2J\tc\u202e")) == r"a\nb\x1b[2J\tc" + r"\u202e"
    assert str(DataError("naïve 漢字 😀")) == "naïve 漢字 😀"


def test_a_message_ends_and_keeps_both_its_ends():
    shown = str(DataError("rows.csv:3: " + "x" * 10**6 + " mend it"))
    assert len(shown) < 1100 and shown.startswith("rows.csv:3: ") and shown.endswith(" mend it")


def test_a_warning_is_one_line_too():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("one\ntwo")
    assert [(each.category, str(each.message)) for each in caught] == [
        (SeedtuneWarning, r"one\ntwo")
    ]


def test_a_file_s_own_name_is_escaped(tmp_path: Path):
    with pytest.raises(JournalError, match=r"odd\\x1b\[2J: cannot be read"):
        read_journal(tmp_path / "odd\x1b[2J")


def test_what_the_csv_library_says_is_escaped(tmp_path: Path):
    file = tmp_path / "rows.tsv"
    file.write_text('text\tlabel\n"a" b\t1\n')
    with pytest.raises(DataError) as caught:
        read_rows(file)
    assert str(caught.value).isprintable()

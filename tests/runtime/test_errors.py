"""Messages stay one line, whatever came into them from files and libraries."""

import warnings

from seedtune.runtime.errors import DataError, SeedtuneWarning, warn


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

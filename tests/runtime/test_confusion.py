"""Counts by right and given answer: macro-F1, the most frequent one, and when it does as well."""

import numpy as np
import pytest
from seedtune.runtime.scoring.evaluation import Confusion

RIGHT = np.array([2, 2, 2, 2, 2, 0, 0, 1])


def confusion(given):
    return Confusion.of(["odd", "a", "Most"], RIGHT, np.array(given))


def test_figures_by_hand():
    found = confusion([2, 2, 2, 0, 1, 0, 2, 2])
    assert found.counts == ((1, 0, 1, 0), (0, 0, 1, 0), (1, 1, 3, 0))
    assert (found.most_frequent, found.most_frequent_share) == ("Most", 5 / 8)
    # F1 of "odd": precision 1/2, recall 1/2; of "a": 0; of "Most": precision 3/5, recall 3/5.
    assert found.macro_f1 == pytest.approx((1 / 2 + 0 + 3 / 5) / 3)


def test_rows_without_an_answer_are_rows_all_the_same():
    found = confusion([2, 2, 2, -1, -1, 0, 0, 1])
    assert found.counts[2] == (0, 0, 3, 2)
    assert found.most_frequent_share == 5 / 8
    assert found.macro_f1 == pytest.approx((1 + 1 + 6 / 8) / 3)


def test_an_answer_that_stands_nowhere_does_not_count():
    found = Confusion.of(["x", "y", "z"], np.array([2, 0]), np.array([2, 0]))
    assert found.macro_f1 == 1.0


@pytest.mark.parametrize(
    ("given", "warned"),
    [([2] * 8, True), ([2, 2, 2, 2, 0, 0, 2, 2], True), ([2, 2, 2, 2, 2, 0, 2, 2], False)],
)
def test_it_warns_where_always_the_most_frequent_answer_does_as_well(given, warned):
    text = confusion(given).warning
    assert (text is not None) == warned
    if text is not None:
        assert "62.5% is no better than always answering 'Most'" in text

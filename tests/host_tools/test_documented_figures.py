"""Figures of README, docs and results are those of the committed JSON files."""

import re
from pathlib import Path

import pytest
from documented_figures import COMMENT, committed_results, figures_of
from seedtune.host_tools.bench.measuring.results_files import RESULTS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(RESULTS.glob("*.md"))]
COUNTED = ("kill -9",)
"""Rows of the table of figures that no benchmark measures: they name their own command."""


@pytest.fixture(scope="module")
def results():
    return committed_results()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_figures_are_those_of_the_results(page, results):
    wrong = [figure for figure in figures_of(page, results) if not figure.agrees]
    assert not wrong, "\n".join(
        f"{figure.where}: {figure.shown} stands there, {figure.measured:.6g} was measured"
        for figure in wrong
    )


def test_every_row_of_the_figures_says_where_it_comes_from():
    rows = [
        line
        for line in (ROOT / "docs/figures.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and re.search(r"\d", line)
    ]
    bare = [row for row in rows if not COMMENT.search(row) and not any(c in row for c in COUNTED)]
    assert len(rows) > 10 and not bare, bare


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("| to 82.6 % ± 1.6 <!-- some/one: mean*100 deviation*100 --> |", [True, True]),
        ("| to 82.7 % ± 1.6 <!-- some/one: mean*100 deviation*100 --> |", [False, True]),
        ("| 400 | 1,234 MB <!-- some/one: bytes*1e-6 --> or 5 <!-- some: many/1 -->", [True, True]),
        ("after 9 to 82.55 <!-- some/one: - mean*100 -->", [False]),
        ("nothing 5.0", []),
    ],
)
def test_a_figure_is_compared_at_the_digits_shown(tmp_path, line, found):
    results = {
        "some": {"one": {"mean": 0.8256, "deviation": 0.0164, "bytes": 1_234_400_000},
                 "many": [4, 5.2]}
    }  # fmt: skip
    (tmp_path / "page.md").write_text(f"# Page\n{line}\n")
    assert [figure.agrees for figure in figures_of(tmp_path / "page.md", results)] == found


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("82.6 <!-- some: mean deviation -->", r"page\.md:1: 1 numbers for 2 places"),
        ("82.6 <!-- some: absent -->", "no 'absent' on the way of some: absent"),
    ],
)
def test_a_comment_that_fits_nothing_is_named(tmp_path, line, error):
    (tmp_path / "page.md").write_text(line)
    with pytest.raises(ValueError, match=error):
        list(figures_of(tmp_path / "page.md", {"some": {"mean": 1.0}}))

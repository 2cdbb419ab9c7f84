"""Figures of README, docs and results are those of the committed JSON files.

A comment behind a figure says where it comes from, and does not show on the page:

``53.0 % to 82.6 % ± 1.6 <!-- quality/sst2/int4-readout: at/0/mean*100 last/mean*100 - -->``

Before the colon stands a place in the results, behind it one place in there for each number between
the comment and what precedes it on its line: another comment, a cell's border or the line's start.
Behind a table's row a comment is about all of its cells.
``*100`` and ``*1e-6`` give the unit, ``-`` passes over a number that nothing was measured for.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from seedtune.host_tools.bench.measuring.quality_table import (
    Group,
    chosen_groups,
    summarise_quality,
)
from seedtune.host_tools.bench.measuring.results_files import RESULTS, read_rows
from seedtune.host_tools.bench.paper import summarise_paper
from seedtune.host_tools.bench.senders import FILE as SENDERS
from seedtune.host_tools.bench.senders import summarise_senders

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(RESULTS.glob("*.md"))]
COUNTED = ("kill -9",)
"""Rows of the table of figures that no benchmark measures: they name their own command."""
COMMENT = re.compile(r"<!-- ([\w-]+(?:/[^:]+)?): (.*?) -->")
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?!\w)")
_UNIT = re.compile(r"\*([\de-]+)$")
_LENGTHS = (60, 200, 400, 1000)
"""Forwards of runs that a table of their own may be made of: ``METHOD, 400 forwards``."""


@dataclass(frozen=True)
class Figure:
    """A number on a page and the one that it was copied from."""

    where: str
    shown: str
    measured: float

    @property
    def agrees(self) -> bool:
        """Whether ``shown`` is ``measured``, rounded to as many digits."""
        digits = len(self.shown.partition(".")[2])
        apart = abs(float(self.shown.replace(",", "")) - self.measured)
        return apart <= 0.5 * 10**-digits * (1 + 1e-6)


def figures_of(page: Path, results: dict[str, Any]) -> Iterator[Figure]:
    """Those of ``page`` that a comment follows.

    Raises:
        ValueError: numbers and places are not as many, or a place is not in ``results``.
    """
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        end = 0
        for comment in COMMENT.finditer(line):
            text = line[end : comment.start()]
            if not text.rstrip().endswith("|"):
                text = text.rpartition("|")[2]
            end, where = comment.end(), f"{page.name}:{number}"
            shown, places = _NUMBER.findall(text), comment[2].split()
            if len(shown) != len(places):
                raise ValueError(f"{where}: {len(shown)} numbers for {len(places)} places: {text}")
            for each, place in zip(shown, places, strict=True):
                if place != "-":
                    yield Figure(
                        f"{where} {comment[1]}: {place}",
                        each,
                        _measured(results, comment[1], place, where),
                    )


def _measured(results: dict[str, Any], base: str, place: str, where: str) -> float:
    unit = _UNIT.search(place)
    found: Any = results
    for key in [*base.split("/"), *_UNIT.sub("", place).split("/")]:
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(f"{where}: no {key!r} on the way of {base}: {place}") from error
    return float(found) * (1 if unit is None else float(unit[1]))


def committed_results() -> dict[str, Any]:
    """Every JSON file by its name; but ``quality`` by task and method, ``senders`` by method and
    messages, the claims of ``paper`` by name and method. Beside them ``people`` by the start of
    their id, messages and method, and ``headline`` and ``headline-quality``, what the summaries of
    ``paper`` and ``quality`` print."""
    found = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    rows = read_rows(RESULTS).values()
    found["quality"] = _by_task(chosen_groups(rows).values())
    for length in _LENGTHS:
        groups = chosen_groups(row for row in rows if row["settings"].get("forwards") == length)
        for task, methods in _by_task(groups.values()).items():
            for method, figures in methods.items():
                found["quality"][task][f"{method}, {length} forwards"] = figures
    people = read_rows(RESULTS, SENDERS)
    found["headline"] = summarise_paper(read_rows(RESULTS), people, found["device"])
    found["headline-quality"] = summarise_quality(read_rows(RESULTS))
    found["senders"] = {}
    for row in summarise_senders(people)["table"]:
        found["senders"].setdefault(row["method"], {})[str(row["messages"])] = row
    found["people"] = _by_person(people.values())
    found["paper"] = {
        claim: {line.get("method", line["what"]): line for line in lines}
        for claim, lines in found["paper"]["claims"].items()
    }
    return found


def _by_task(groups: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        assert isinstance(group, Group)
        judged_on = group.rows[0]["settings"].get("test_rows", 300)
        task = group.task if judged_on == 300 else f"{group.task}, {judged_on} rows"
        at = {str(forwards): point for forwards, point in group.curve.items()}
        found.setdefault(task, {})[group.method] = {**group.figures(), "at": at}
    return found


def _by_person(rows: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """``start``, the int4 program untouched, beside the methods that ran it."""
    starts = {row["sender"]: row for row in rows if row["method"] == "start-int4"}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        start = starts[row["sender"]]
        person = found.setdefault(row["sender"][:8], {})
        cells = person.setdefault(str(row["settings"]["messages"]), {"start": start})
        rise = row["other"]["perplexity"] / start["other"]["perplexity"] - 1
        cells[row["method"]] = {**row, "other_rise": rise}
    return found


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

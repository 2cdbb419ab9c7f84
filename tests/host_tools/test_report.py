"""``seedtune report`` and the quickstart's picture: runs for a reader who knows none of this
project's words."""

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from command_line import bad, call, good
from seedtune.host_tools.reports.svg_chart import Line, chart, draw_runs
from seedtune.runtime import engines
from seedtune.runtime.errors import SeedtuneError
from tiny_bundle import write_tiny_bundle
from value_engine import ValueEngine


class Seen(HTMLParser):
    """Elements, their addresses and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements: set[str] = set()
        self.addresses: list[str | None] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    return write_tiny_bundle(tmp_path / "bundle").path


@pytest.fixture
def rows(tmp_path):
    words = ["the film", "great <b>plot</b>", "dull", "bad and dull", "good", "I left because"]
    file = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"text": f"{words[n % 6]} {words[n % 5]}", "label": n % 2}) for n in range(60)
    ]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def run(tmp_path, bundle, rows):
    good("tune", bundle, tmp_path / "run", "--train", rows, "--data", rows, "--steps", 12,
         "--eval-every", 3, "--batch-size", 4, "--estimator", "two-point", "--eps", 0.01,
         "--lr", 0.01)  # fmt: skip
    return tmp_path / "run"


def test_a_page_that_needs_no_network(tmp_path, run):
    told = good("report", run)
    file = run / "report.html"
    assert told == {"page": str(file), "bytes": file.stat().st_size}
    assert file.stat().st_mode & 0o077 == 0  # it shows rows
    text = file.read_text()
    seen = Seen(text)
    assert not seen.addresses and not {"script", "link", "img", "iframe"} & seen.elements
    assert "@import" not in text and "url(" not in text and "http" not in text
    journal = good("journal", "show", run)
    kept = json.loads((run / "outcome.json").read_text())
    for part in (
        "accuracy", "forward passes", "the held-out loss", "batch_size", "memory at most", " MB",
        journal["bundle_sha256"], kept["values_sha256"], "30 rows that chose nothing",
    ):  # fmt: skip
        assert part in seen.words or part in seen.words.lower(), part
    assert text.count("<svg") == 2
    assert text.count("✓") + text.count("✗") == 40  # twenty rows, before and after
    assert "great <b>plot</b>" in seen.words  # a row is text, no markup


def test_a_page_elsewhere_and_of_a_run_without_an_outcome(tmp_path, run):
    (run / "outcome.json").unlink()
    (run / "metrics.jsonl").unlink()
    good("report", run, "-o", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "None are kept" in text and "<svg" in text


def test_a_page_of_texts_shows_what_is_written_and_no_empty_column(run):
    file = run / "outcome.json"
    kept = json.loads(file.read_text())
    said = [{"answer": None, "scores": {"nll": nll}} for nll in (2.5, 1.5)]
    rows = [{"fields": {"text": "hi"}, "right": None, "before": said[0], "after": said[1]}]
    samples = [{"prompt": "hi <Mia>:", "right": " yep", "before": " I am", "after": " yep, hi"}]
    file.write_text(json.dumps({**kept, "rows": rows, "samples": samples}))
    good("report", run)
    text = (run / "report.html").read_text()
    seen = Seen(text)
    assert "hi <Mia>:" in seen.words and " yep, hi" in seen.words
    assert "right answer<" not in text and "loss a token 1.500" in seen.words


def test_what_a_reader_cannot_use_is_one_line(tmp_path, run):
    assert "cannot be read" in bad(5, "report", tmp_path / "nowhere")
    assert "cannot be written" in bad(1, "report", run, "-o", tmp_path / "no" / "page.html")
    (run / "outcome.json").write_text("{")
    assert "outcome.json: cannot be read" in bad(5, "report", run)


def test_an_outcome_of_another_step_is_not_told_of(run):
    whole = json.loads((run / "outcome.json").read_text())
    for stale in ({"steps": 11}, {"bundle": {**whole["bundle"], "sha256": "0" * 64}}):
        (run / "outcome.json").write_text(json.dumps(whole | stale))
        told = call("report", run)
        assert told.exit_code == 0 and "outcome.json: is of step" in told.stderr
        text = (run / "report.html").read_text()
        assert "None are kept" in text and "values that ship" not in text


def test_a_picture_says_what_it_shows(run):
    draw_runs({"readout": run, "a < b": run}, run / "p.svg")
    drawn = ElementTree.parse(run / "p.svg").getroot()
    space = {"": "http://www.w3.org/2000/svg"}
    charts = drawn.findall(".//svg", space)
    assert [len(each.findall("circle", space)) for each in charts] == [2 * 5, 2 * 5]
    text = " ".join(drawn.itertext())
    for part in ("lower is better", "higher is better", "answered right", "read a batch of rows",
                 "readout", "a < b", "0%"):  # fmt: skip
        assert part in text, part
    assert not {"lr", "eps", "probes", "estimator"} & set(text.split())
    with pytest.raises(SeedtuneError, match=r"p\.svg: cannot be written"):
        draw_runs({"one": run, "other": run}, run / "no" / "p.svg")


def test_charts_are_well_formed_and_survive_odd_numbers():
    line = Line("a < b", [(0, 1.0), (5, float("nan")), (10, 1.0)], "#000")
    drawn = ElementTree.fromstring(chart([line], "steps & more", lambda value: f"{value:.2g}"))
    assert len(drawn.findall("circle")) == 2
    (name,) = [text for text in drawn.findall("text") if text.find("tspan") is not None]
    highest = min(float(each.attrib["cy"]) for each in drawn.findall("circle"))
    assert float(name.attrib["y"]) < highest  # above what it names
    assert "Nothing was recorded" in chart([Line("x", [], "#000")], "steps", str)
    many = Line("m", [(n, n % 7) for n in range(5000)], "#000", dots=False)
    assert len(chart([many], "steps", str)) < 20_000

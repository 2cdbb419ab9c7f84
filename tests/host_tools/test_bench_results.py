"""Committed figures: how they are written, and the arithmetic that benchmarks share."""

import json
import math

import numpy as np
import pytest
from seedtune.host_tools.bench.measuring.results_files import RESULTS, machine, write_figures
from seedtune.host_tools.bench.measuring.runs import perplexity, text_batches
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import SeedtuneError


def test_figures_are_written_with_the_machine(tmp_path):
    content = write_figures("some", {"accuracy": 0.5}, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "some.json").read_text()) == content
    assert content["accuracy"] == 0.5 and content["machine"] == machine()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SeedtuneError, match=r"file.some\.json: cannot be written"):
        write_figures("some", {}, tmp_path / "file")


def test_perplexity_scores_every_next_token_once():
    bounds = Bounds(probes=2, rows=2, length=4, positions=6, candidates=2)
    text = np.arange(20).reshape(5, 4)
    seen: list[tuple[int, int]] = []

    def score(batch):
        assert len(batch.tokens) <= bounds.rows and len(batch.positions) <= bounds.positions
        here = batch.tokens.reshape(-1)[batch.positions]
        seen.extend(zip(here.tolist(), batch.candidates[:, 0].tolist(), strict=True))
        return np.full((1, *batch.candidates.shape), -math.log(7), np.float32)

    found = perplexity(score, text_batches(text, bounds))
    assert found == pytest.approx(7, rel=1e-6)
    assert seen == [(token, token + 1) for token in range(20) if token % 4 != 3]


def test_committed_figures_name_their_machine():
    files = sorted(RESULTS.glob("*.json"))
    assert files
    for file in files:
        assert json.loads(file.read_text())["machine"]["cpu"], file


def test_every_committed_picture_is_shown():
    pages = "".join(page.read_text() for page in RESULTS.glob("*.md"))
    for picture in (*RESULTS.glob("*.png"), *RESULTS.glob("*.svg")):
        assert f"]({picture.name})" in pages

"""The paper's claims and the headline figures, from committed results."""

import json

import pytest
from seedtune.host_tools.bench.paper import bench_paper
from seedtune.host_tools.bench.summaries.paper import claims_of, show_paper, summarise_paper

DEVICE = {
    "step_over_two_forwards": 0.96, "sparse_overhead": 1.04, "mezo_fp32_over_step": 8.0,
    "lora_over_step": 3.3, "peak_over_mezo": 0.19, "peak_over_lora": 0.08,
}  # fmt: skip


def _row(method, task, seed, curve, forwards=None, metric="accuracy"):
    settings = {} if forwards is None else {"forwards": forwards}
    return {
        "method": method, "task": task, "seed": seed, "metric": metric, "settings": settings,
        "curve": [{"forwards": at, "loss": 0.5, "accuracy": value} for at, value in curve],
        "peak_rss_bytes": 1,
    }  # fmt: skip


def _rows(*rows):
    return {str(number): row for number, row in enumerate(rows)}


MEZO = _row("mezo-fp32", "sst2", 0, [(0, 0.5), (200, 0.66), (400, 0.69)], 400)
SPARSE = _row("int4-per-example", "sst2", 0, [(0, 0.5), (100, 0.68), (200, 0.7), (400, 0.76)], 400)


def test_claims_compare_at_equal_forwards():
    rows = _rows(
        MEZO,
        SPARSE,
        _row("int4-per-example", "sst2", 0, [(0, 0.5), (200, 0.71)], 200),
        _row("sensitive-mask-fp32", "sst2", 0, [(0, 0.5), (200, 0.72)], 200),
        _row("random-mask-fp32", "sst2", 0, [(0, 0.5), (200, 0.52)], 200),
        _row("task-mask-fp32", "sst2", 0, [(0, 0.5), (200, 0.73)], 200),
        _row("magnitude-mask-fp32", "sst2", 0, [(0, 0.5), (100, 0.51)], 100),
    )
    claims = claims_of(rows, DEVICE, 200)
    found = {
        name: [(line["what"], line["accuracy"]["mean"]) for line in claims[name]]
        for name in ("masks", "bits", "text")
    }
    assert found == {
        "masks": [("all weights (MeZO)", 0.66), ("sensitive 0.1 %", 0.72), ("random 0.1 %", 0.52)],
        # A run of 200 forwards, not the middle of a longer one.
        "bits": [("float32", 0.72), ("int4", 0.71)],
        "text": [("public text", 0.72), ("the task's training rows", 0.73)],
    }
    # Nor that of one of 1 000, where there is one of 400.
    longer = _row("int4-per-example", "sst2", 0, [(0, 0.5), (200, 0.6), (1000, 0.8)], 1000)
    (line,) = claims_of(_rows(SPARSE, longer), None, 200)["bits"]
    assert line["accuracy"]["mean"] == 0.7
    assert len(claims["cost"]) == 6 and claims_of({}, None, 200)["cost"] == []
    anew = {name: figure for name, figure in DEVICE.items() if "over_two" not in name}
    assert len(claims_of({}, anew, 200)["cost"]) == 5


def test_headline_figures():
    person = {"perplexity": 40.0}
    start = {"method": "start-int4", "sender": "a", "settings": {"messages": 0}, "test": person,
             "other": person}  # fmt: skip
    tuned = {"method": "text-head", "sender": "a", "settings": {"messages": 200},
             "test": {**person, "perplexity": 30.0}, "other": {**person, "perplexity": 40.2},
             "seconds": 1.0, "cpu_seconds": 1.0, "peak_rss_bytes": 1}  # fmt: skip
    rows = _rows(
        MEZO,
        SPARSE,
        _row("int4-per-example", "sst2", 0, [(0, 0.5), (1000, 0.79)], 1000),
        _row("int4-text-head-alone", "chat", 0, [(0, 80.0), (100, 40.0)], 100, "perplexity"),
        _row("int4-text-head", "chat", 0, [(0, 80.0), (100, 80 / 2**1.5)], 100, "perplexity"),
        _row("lora", "chat", 0, [(0, 80.0), (300, 20.0)], None, "perplexity"),
    )
    found = summarise_paper(rows, _rows(start, tuned), DEVICE)
    assert found["missing"] == {}
    assert found["sparse_forwards_to_mezo_400"] == 200
    assert found["sparse_accuracy_at_400"] == 0.76 and found["mezo_accuracy_at_400"] == 0.69
    assert found["sparse_accuracy_at_1000"] == 0.79
    assert found["text_gain_over_lora"] == pytest.approx(0.5)
    assert found["text_gain_with_memory_over_lora"] == pytest.approx(0.75)
    assert (found["senders_helped"], found["senders_harmed"]) == (1, 0)
    assert found["other_text_rise"] == pytest.approx(0.005)
    assert found["step_over_mezo"] == 0.125


def test_what_is_not_known_names_its_command(tmp_path):
    found = bench_paper(results=tmp_path)
    known = {name for name, value in found.items() if value is not None}
    assert known == {"claims", "missing"}
    assert found["missing"]["sparse_accuracy_at_400"] == (
        "seedtune bench quality --methods int4-per-example,mezo-fp32 --tasks sst2 --forwards 400"
    )
    assert found["missing"]["senders_harmed"].startswith("seedtune bench senders --methods ")
    assert not list(tmp_path.iterdir())


def test_the_committed_results_give_the_figures(capsys):
    found = bench_paper()
    json.dumps(found)
    assert found["mezo_accuracy_at_400"] == pytest.approx(0.694, abs=0.001)
    assert found["sparse_accuracy_at_400"] >= 0.72 and found["sparse_forwards_to_mezo_400"] <= 200
    from rich.console import Console

    Console(width=140).print(show_paper(found))
    assert "all weights (MeZO)" in capsys.readouterr().out

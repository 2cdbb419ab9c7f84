"""The paper's claims and the headline figures, from committed results."""

import json

import pytest
from seedtune.host_tools.bench.measuring.results_files import RESULTS
from seedtune.host_tools.bench.paper import bench_paper, show_paper


def test_what_is_not_known_names_its_command(tmp_path):
    found = bench_paper(results=tmp_path)
    known = {name for name, value in found.items() if value is not None}
    assert known == {"claims", "missing"}
    assert found["missing"]["sparse_accuracy_at_400"] == (
        "seedtune bench quality --methods int4-per-example,mezo-fp32 --tasks sst2 --forwards 400"
    )
    assert found["missing"]["values_accuracy_at_60"] == (
        "seedtune bench quality --methods int4-mlp-gradient --tasks sst2 --forwards 60 "
        "--test-rows 872"
    )
    assert found["missing"]["sst2_points_over_lora"] == (
        "seedtune bench quality --methods int4-readout,int4-mlp-gradient,lora --tasks sst2 "
        "--test-rows 872"
    )
    assert found["missing"]["senders_harmed"].startswith("seedtune bench senders --methods ")
    assert not list(tmp_path.iterdir())


def test_the_committed_results_give_the_figures(capsys):
    found = bench_paper()
    committed = json.loads((RESULTS / "paper.json").read_text())["claims"]
    for claim in ("masks", "bits", "text", "cost"):
        assert found["claims"][claim] == committed[claim]
    assert found["missing"] == {} and found["sparse_forwards_to_mezo_400"] == 100
    wanted = {
        "mezo_accuracy_at_400": 0.6944, "sparse_accuracy_at_400": 0.76,
        "sparse_accuracy_at_1000": 0.7678, "values_accuracy_at_60": 0.7963,
        "values_accuracy_at_400": 0.8016, "sst2_points_over_lora": -2.2171,
        "text_gain_over_lora": 0.7506,
        "text_gain_with_memory_over_lora": 0.8354, "deep_text_gain_over_lora": 0.9751,
        "deep_text_gain_with_memory_over_lora": 1.0138, "senders_helped": 12,
        "senders_harmed": 0, "other_text_rise": 0.0022,
        "step_over_mezo": 0.12, "peak_over_lora": 0.0837,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    from rich.console import Console

    Console(width=140).print(show_paper(found))
    assert "all weights (MeZO)" in capsys.readouterr().out

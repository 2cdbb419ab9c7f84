"""``seedtune bench estimate``: each stage as a user runs it, a table, and figures that are kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import bad, call
from seedtune.host_tools.bench import estimate as module
from seedtune.host_tools.bench.estimate import Measured
from seedtune.host_tools.bench.measuring.process import run_module
from seedtune.host_tools.bench.programs.random_llama import write_random_llama
from seedtune.runtime.errors import SeedtuneError
from tiny_bundle import write_tiny_bundle


@pytest.fixture
def commands(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Any, ...]]:
    """What was run; no command takes more than it says."""
    seen: list[tuple[Any, ...]] = []

    def run(name: str, *arguments: Any) -> dict[str, Any]:
        seen.append(arguments)
        if arguments[0] == "export":
            write_tiny_bundle(Path(arguments[2]))
        return {"peak_rss_bytes": 500_000_000}

    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MODELS", {"one": Measured(), "two": Measured(rounding="nearest")})
    monkeypatch.setattr(module, "_real", lambda name: tiny_llama_folder)
    monkeypatch.setattr(module, "run_module", run)
    return seen


def test_every_stage_is_measured_and_shown(tmp_path: Path, commands: list[Any]) -> None:
    shown = call("bench", "estimate", "--output", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert [each[0] for each in commands] == 2 * ["profile", "export", "tune", "tune"]
    assert "nearest" in commands[5] and "gptq" in commands[1]
    figures = json.loads((tmp_path / "estimate.json").read_text())
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    for stage in ("profile", "export", "tuning readout", "tuning two-point"):
        found = figures["one"][stage]
        assert found["estimated_bytes"] == sum(found["components"].values())
        assert found["estimate_over_peak"] == found["estimated_bytes"] / 5e8
        line = f"one {stage} {found['estimated_bytes'] / 1e6:,.0f} 500 "
        assert any(each.startswith(line) for each in lines)


def test_one_model_again_leaves_the_figures_of_the_others(
    tmp_path: Path, commands: list[Any]
) -> None:
    call("bench", "estimate", "--output", tmp_path)
    before = json.loads((tmp_path / "estimate.json").read_text())
    before["two"]["export"]["peak_rss_bytes"] = 7
    (tmp_path / "estimate.json").write_text(json.dumps(before))
    assert call("bench", "estimate", "--models", "one", "--output", tmp_path).exit_code == 0
    after = json.loads((tmp_path / "estimate.json").read_text())
    assert after["two"] == before["two"]
    assert "no model 'three'; known: one, two" in bad(1, "bench", "estimate", "--models", "three")


def test_what_does_not_fit_is_not_run(
    tmp_path: Path, commands: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 10)
    shown = call("bench", "estimate", "--models", "one", "--output", tmp_path)
    assert not commands
    assert " nan " in shown.stdout


def test_a_command_that_fails_is_named() -> None:
    wanted = "cli inspect nowhere --json` ended with exit code 4: nowhere: no such bundle"
    with pytest.raises(SeedtuneError, match=wanted):
        run_module(module.COMMANDS, "inspect", "nowhere", "--json")


def test_what_is_exported_for_torch_alone_is_not_tuned(
    tmp_path: Path, commands: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MODELS", {"one": Measured(to=("torch",))})
    assert call("bench", "estimate", "--output", tmp_path).exit_code == 0
    assert [each[0] for each in commands] == ["profile", "export"]
    assert commands[1][commands[1].index("--to") + 1] == "torch"


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_llama_is_a_model_in_fp16_files(
    tied: bool, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    import torch
    from seedtune.export.model.load_model import load_causal_lm

    config = {
        "vocab_size": 280, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied,
    }  # fmt: skip
    write_random_llama(tmp_path, config, tiny_llama_folder)
    assert len([*tmp_path.glob("*.safetensors")]) == 4
    loaded = load_causal_lm(tmp_path, "stored")  # refuses a model that lacks a weight
    linears = [m for m in loaded.model.modules() if isinstance(m, torch.nn.Linear)]
    assert {each.rest.tensors[0].dtype for each in linears} == {torch.float16}
    assert len({float(each.weight.sum()) for each in linears}) == len(linears) == 22
    assert 0.015 < float(linears[0].weight.std()) < 0.025
    ids = loaded.tokenizer("The cat sat on the mat.")["input_ids"]
    assert ids and max(ids) < 280

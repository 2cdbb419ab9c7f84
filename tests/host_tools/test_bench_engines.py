"""The benchmarks of engines and cards, on tiny bundles: what they measure is what they say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compiler import needs_compiler
from seedtune.host_tools.bench import engines, gpu, gpu_process
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.errors import SeedtuneError
from tiny_bundle import TASK

ROWS = [{"text": f"the cat {number}", "label": number % 2} for number in range(96)]
DATA = SimpleNamespace(spec=TASK, train=ROWS, test=ROWS[:24])
OURS = ("onnxruntime", "torch-int4:cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "load_task", lambda name: DATA)
    monkeypatch.setattr(engines, "TEST_ROWS", 24)
    monkeypatch.setattr(engines, "TURNS", 1)
    monkeypatch.setattr(engines, "LENGTH", 32)


@needs_compiler
def test_engines_beside_each_other(reach: Bundle, small: None, tmp_path: Path) -> None:
    given = {"bundle": reach.path, "methods": OURS, "forwards": 8, "results": tmp_path}
    found = engines.bench_engines(**given)
    assert found == json.loads((tmp_path / "engines.json").read_text())
    first, second = (found["engines"][name] for name in OURS)
    assert first["apart_most"] == 0 < second["apart_most"] < 1e-4
    assert first["equal_probes_bit_equal"]
    assert first["noise"]["1e-06"] < 1e-5
    assert first["seconds_over_first"] == {"1": 1.0, "2": 1.0}
    assert set(second["seconds_over_first"]) == {"1", "2"}
    assert (first["torch"], second["torch"]) == (False, True)
    assert first["over_program_bytes"] == first["peak_rss_bytes"] - first["program_bytes"] > 0
    for label in ("readout", "two-point, eps 0.001", "two-point, eps 0.01"):
        assert first[label]["program"] == "onnx (float32)"
        assert second[label]["program"].startswith("torch ")
        assert len(first[label]["values_sha256"]) == 64


def test_a_card_is_measured_here_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All but the card's own figures, on the CPU and a tiny shape."""
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "LENGTH", 16)
    monkeypatch.setattr(gpu_process, "STEPS", 1)
    monkeypatch.setattr(
        gpu, "_process", lambda name, bundle, device: gpu_process.main(name, bundle.path, device)
    )
    with pytest.raises(SeedtuneError, match=r"unknown 'huge'; known: llama-2-7b, "):
        gpu.bench_gpu(shape="huge")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(gpu_process, "LIBRARIES", ("no_such_library",))
    found: Any = gpu.bench_gpu(shape="tiny", results=tmp_path)
    assert found["card"] is None and found["shape"] == "tiny"
    assert 0 < found["parity"]["cpu-bf16"] < 0.5
    for name in ("ours", "forwards-bf16", "mezo-bf16"):
        assert found[name]["seconds"] > 0 and found[name]["peak_bytes"] > 10**7
    assert (
        found["qlora"]
        == found["qlora-checkpointing"]
        == {"missing": "no_such_library is not installed"}
    )
    bundle = gpu.random_bundle("tiny")  # kept
    assert [program.format for program in bundle.programs] == ["torch"]
    shares = [layer.count / np.prod(layer.shape) for layer in bundle.layers]
    assert 0.0005 < np.mean(shares) < 0.002

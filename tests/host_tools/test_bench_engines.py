"""The benchmarks of engines and cards, on tiny bundles: what they measure is what they say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compiler import needs_compiler
from exported_bundle import request
from seedtune.host_tools.bench import engines, gpu
from seedtune.host_tools.bench.processes import gpu as gpu_process
from seedtune.host_tools.bench.programs import random_bundle
from seedtune.host_tools.bench.programs.without_sparse_term import without_sparse_term
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.engines import open_engine
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
    for each in (first, second):
        for eps in ("0.001", "0.01"):
            assert each["slopes"][eps]["root_mean_square"] > 0
            assert each["slopes"][eps]["correlation"] > 0.98  # float32: noise moves nothing
    assert first["seconds_over_first"] == {"1": 1.0, "2": 1.0}
    assert set(second["seconds_over_first"]) == {"1", "2"}
    assert (first["torch"], second["torch"]) == (False, True)
    assert first["over_program_bytes"] == first["peak_rss_bytes"] - first["program_bytes"] > 0
    for each in (first, second):
        assert each["over_dense"] > 0
    for label in ("readout", "two-point, eps 0.001", "two-point, eps 0.01"):
        assert first[label]["program"] == "onnx (float32)"
        assert second[label]["program"].startswith("torch ")
        assert len(first[label]["values_sha256"]) == 64


@needs_compiler
@pytest.mark.parametrize("name", OURS)
def test_a_program_without_the_sparse_term(reach: Bundle, tmp_path: Path, name: str) -> None:
    """Values move nothing any more, all else is the same program."""
    batch, values = request(reach, rows=3, length=9, scored=4, choices=2, probes=2)
    with open_engine(reach, 1, name=name) as engine:
        whole = engine.score(batch, values)
    with open_engine(without_sparse_term(reach, name, tmp_path), 1, name=name) as engine:
        dense = engine.score(batch, values)
    assert np.abs(whole.logp[0] - whole.logp[1]).max() > 1e-4
    np.testing.assert_array_equal(dense.logp[0], dense.logp[1])
    assert dense.logp.shape == whole.logp.shape and np.isfinite(dense.logp).all()
    assert np.abs(dense.logp - whole.logp).max() > 1e-3
    assert reach.sha256 == open_bundle(reach.path).sha256  # the links' targets are as they were


def test_a_card_is_measured_here_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All but the card's own figures, on the CPU and a tiny shape."""
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(random_bundle, "LENGTH", 16)
    monkeypatch.setattr(gpu_process, "STEPS", 1)
    monkeypatch.setattr(gpu, "run_module", lambda module, *arguments: gpu_process.main(*arguments))
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
    bundle = random_bundle.random_bundle("tiny")  # kept
    assert [program.format for program in bundle.programs] == ["torch"]
    shares = [layer.count / np.prod(layer.shape) for layer in bundle.layers]
    assert 0.0005 < np.mean(shares) < 0.002

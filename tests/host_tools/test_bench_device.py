"""The device's benchmarks: what their figures are made from, and a measured process for real."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from compiler import needs_compiler
from seedtune.export.profile.profile_file import LayerProfile, Profile
from seedtune.host_tools.bench.contenders import steps
from seedtune.host_tools.bench.contenders.steps import two_point_step
from seedtune.host_tools.bench.measuring import device_process
from seedtune.host_tools.bench.measuring.process import run_module
from seedtune.host_tools.bench.programs.llama_shapes import (
    COLUMN_SHARE,
    FRACTION,
    SHAPES,
    few_columns,
)
from seedtune.runtime.bundle import Bundle
from tiny_bundle import TASK


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@needs_compiler
def test_a_measured_process_tunes_without_torch(bundle: Bundle, tmp_path: Path) -> None:
    task = tmp_path / "task.json"
    rows = [{"text": f"the cat {number}", "label": str(number % 2)} for number in range(8)]
    task.write_text(json.dumps({"spec": TASK, "rows": rows}))
    found = run_module(device_process.__name__, "tune", bundle.path, 4, 16, 2, task)
    assert found["torch"] is False
    assert 0 < found["ready_seconds"] < found["first_step_seconds"]
    assert found["longest_row"] <= 16
    assert 10**7 < found["peak_rss_bytes"] < 10**9


def test_a_step_moves_nothing_but_its_own_copy(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_CORES", "auto")  # other tests fix how many the process has
    before = bundle.values.copy()
    step = two_point_step(bundle, 3, 8)
    step()
    step()
    assert (bundle.values == before).all()


def test_random_masks_lie_as_the_default_mask_does() -> None:
    linears = {
        f"model.layers.{block}.{name}": size
        for block in range(8)
        for name, size in (
            ("self_attn.q_proj", (256, 256)),
            ("self_attn.v_proj", (64, 256)),
            ("mlp.down_proj", (256, 1024)),
        )
    }
    layers = {name: LayerProfile(np.zeros(size, np.float32)) for name, size in linears.items()}
    mask = few_columns(Profile(layers, "m", "0" * 64, "0" * 64, {}), FRACTION)
    weights = sum(rows * columns for rows, columns in linears.values())
    entries = sum(len(flat) for flat in mask.values())
    assert entries == pytest.approx(FRACTION * weights, rel=0.05)
    columns = sum(
        len(np.unique(flat % linears[name][1])) * linears[name][0] for name, flat in mask.items()
    )
    assert columns == pytest.approx(COLUMN_SHARE * weights, rel=0.3)
    assert all((np.diff(flat) > 0).all() for flat in mask.values())


def test_shapes_are_the_published_ones() -> None:
    sizes = {}
    for name, its in SHAPES.items():
        width = its.hidden_size // its.num_attention_heads * its.num_key_value_heads
        block = 2 * its.hidden_size**2 + 2 * its.hidden_size * width
        block += 3 * its.hidden_size * its.intermediate_size
        table = its.vocab_size * its.hidden_size * (1 if its.tie_word_embeddings else 2)
        sizes[name] = (its.num_hidden_layers * block + table) / 1e9
    assert sizes["llama-3.2-1b"] == pytest.approx(1.236, rel=0.01)
    assert sizes["llama-2-7b"] == pytest.approx(6.738, rel=0.01)

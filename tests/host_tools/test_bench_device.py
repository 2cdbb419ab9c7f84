"""The device's benchmarks: what their figures are made from, and a measured process for real."""

import json
import sys

import pytest
from compiler import needs_compiler
from seedtune.host_tools.bench import device
from seedtune.host_tools.bench.contenders import device_process
from seedtune.host_tools.bench.measuring.process import run_module
from tiny_bundle import TASK


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@needs_compiler
def test_a_measured_process_tunes_without_torch(bundle, tmp_path):
    task = tmp_path / "task.json"
    rows = [{"text": f"the cat {number}", "label": str(number % 2)} for number in range(8)]
    task.write_text(json.dumps({"spec": TASK, "rows": rows}))
    found = run_module(device_process.__name__, "tune", bundle.path, 4, 16, 2, task)
    assert found["torch"] is False
    assert found["longest_row"] <= 16
    assert 10**7 < found["peak_rss_bytes"] < 10**9


def test_a_step_moves_nothing_but_its_own_copy(bundle, monkeypatch):
    monkeypatch.setattr(device, "_CORES", "auto")  # other tests fix how many the process has
    before = bundle.values.copy()
    step = device.two_point_step(bundle, 3, 8)
    step()
    step()
    assert (bundle.values == before).all()

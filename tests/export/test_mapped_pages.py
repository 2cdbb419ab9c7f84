"""Pages of a mapped model file are given back, and never those of memory that has no file."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from seedtune.export.model.mapped_pages import forget
from seedtune.runtime.engines.system_memory import resident_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs madvise")
MB = 1 << 20


def test_pages_of_a_file_are_given_back_and_come_back_when_read(tmp_path):
    save_file({"a": torch.ones(8 * MB), "b": torch.full((1000,), 2.0)}, tmp_path / "m.safetensors")
    weights = load_file(tmp_path / "m.safetensors")
    assert float(weights["a"].sum()) == 8 * MB
    before = resident_bytes()
    forget(weights["a"])
    assert before - resident_bytes() > 24 * MB
    assert float(weights["a"].sum()) == 8 * MB and float(weights["b"].sum()) == 2000


def test_memory_without_a_file_is_left_alone():
    weight = torch.ones(4 * MB)
    forget(weight)
    assert float(weight.sum()) == 4 * MB

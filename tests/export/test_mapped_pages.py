"""Pages of a mapped model file are given back, and never those of memory that has no file."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from seedtune.export.model.mapped_pages import forget
from seedtune.export.model.tensor_file import find_bytes
from seedtune.runtime.engines.memory import peak_resident_bytes, resident_bytes

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


def test_what_is_looked_for_in_a_file_comes_in_piece_by_piece(tmp_path):
    size = 192 * MB
    block = np.random.default_rng(0).integers(0, 256, MB, np.uint8)
    for name, first in (("wanted", b""), ("almost", b""), ("file", b"some bytes in front")):
        with (tmp_path / name).open("wb") as sink:
            sink.write(first)
            for number in range(size // MB):
                sink.write((block + np.uint8(number)).tobytes())
    with (tmp_path / "almost").open("r+b") as sink:
        sink.seek(size - 1)
        sink.write(bytes([(int(block[-1]) + size // MB) % 256]))
    wanted, almost = (np.memmap(tmp_path / name, np.uint8, "r") for name in ("wanted", "almost"))
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    assert list(find_bytes(wanted, tmp_path / "file")) == [19]
    assert peak_resident_bytes() - before < 0.6 * size
    assert not list(find_bytes(almost, tmp_path / "file")), "its last byte is another"

"""The benchmarks' dense program is lowered as the bundle's is, and runs."""

from pathlib import Path

import numpy as np
from exported_bundle import BOUNDS, VOCABULARY
from seedtune.host_tools.bench.programs.dense_program import _lower
from seedtune.runtime.bundle import Generation
from seedtune.runtime.engines.executorch_native import NativeProgram


def test_it_is_lowered_with_the_bundle_s_methods(tiny_llama_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "dense.pte"
    sizes = Generation(chunk=8, context=32, cache=(), columns=1)
    _lower(str(tiny_llama_folder), BOUNDS, sizes, file, lambda *_: None)
    program = NativeProgram(file)
    assert program.methods() == ["generate", "score"]
    ((_, (width, states)),) = program.describe("score").inputs[4:]
    inputs = [np.full((2, 5), 3), np.array([4, 9]), np.array([[1, 2]] * 2)]
    inputs += [np.zeros((1, 1), np.float32), np.zeros((width, states), np.float32)]
    (logp,) = program.run("score", inputs, (1, 2, 2))
    program.close()
    assert np.isfinite(logp).all() and np.exp(logp).sum(axis=2).max() < 1 < VOCABULARY
    np.testing.assert_array_equal(logp[0, 0], logp[0, 1])

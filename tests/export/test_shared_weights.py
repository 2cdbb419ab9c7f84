"""Methods of one program hold their weights once, in the file and in memory, and each its own."""

import numpy as np
import pytest
import torch
from seedtune.export.lower.lower import lower
from seedtune.export.quantise.int4 import quantise_linears_
from seedtune.runtime.engines.executorch_native import NativeProgram
from seedtune.runtime.engines.memory import resident_bytes
from torch import nn
from torch.export import export

WIDTH = 4096
WEIGHTS = WIDTH * WIDTH // 2


class Sum(nn.Module):
    def __init__(self, linear, more):
        super().__init__()
        self.linear, self.more = linear, more

    def forward(self, x):
        return self.linear(x) + self.more


def method(linear, more):
    return lambda: export(Sum(linear, more), (torch.ones(1, linear.in_features),))


def lowered(file, *methods):
    """A program of these methods, each a linear and what is added to its product."""
    traces = {
        name: method(*each) for name, each in zip(("score", "generate"), methods, strict=False)
    }
    lower(nn.ModuleList(linear for linear, _ in methods), traces, file)


def int4(width, scale=1.0):
    torch.manual_seed(0)
    linear = nn.Linear(width, width, bias=False).requires_grad_(False)
    linear.weight.mul_(scale)
    quantise_linears_(Sum(linear, 0.0))
    return linear


def test_a_second_method_costs_no_second_weights(tmp_path):
    linear = int4(WIDTH)
    file, alone = tmp_path / "program.pte", tmp_path / "alone.pte"
    lowered(alone, (linear, 0.0))
    lowered(file, (linear, 0.0), (linear, 1.0))
    one, both = alone.stat().st_size, file.stat().st_size
    assert one > WEIGHTS and both - one < 0.01 * WEIGHTS
    program = NativeProgram(file)
    x = np.random.default_rng(0).standard_normal((1, WIDTH), np.float32)
    program.load("score")
    before = resident_bytes()
    program.load("generate")
    after = resident_bytes()
    (plain,) = program.run("score", [x], (1, WIDTH))
    (more,) = program.run("generate", [x], (1, WIDTH))
    program.close()
    assert np.array_equal(plain + 1, more)
    assert before is not None and after is not None
    assert after - before < 0.3 * WEIGHTS, "packed twice"


@pytest.mark.parametrize("scale", [2.0, 0.25])
def test_equal_codes_of_other_scales_are_another_weight(tmp_path, scale):
    file = tmp_path / "program.pte"
    lowered(file, (int4(64), 0.0), (int4(64, scale), 0.0))
    program = NativeProgram(file)
    x = np.random.default_rng(0).standard_normal((1, 64), np.float32)
    (one,) = program.run("score", [x], (1, 64))
    (other,) = program.run("generate", [x], (1, 64))
    program.close()
    assert np.allclose(other, scale * one, rtol=1e-3, atol=1e-4)

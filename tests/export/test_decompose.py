"""Operators broken up one by one, beside what torch makes of the whole graph."""

import pytest
import torch
from seedtune.export.lower import decompose
from seedtune.export.lower.decompose import decomposed
from seedtune.export.quantise.int4 import int4_weight
from torch import nn
from torch.export import Dim, default_decompositions, export
from torch.fx.node import map_arg
from torch.nn import functional as F

LINEAR = torch.ops.aten.linear.default
CHECK = torch.ops.aten._assert_tensor_metadata.default
ROWS = Dim("rows", min=3, max=64)
X = torch.randn(5, 4, 32)


class Block(nn.Module):
    """Operators of decoders that are made of others, and some that are not."""

    def __init__(self):
        super().__init__()
        self.norm, self.int4 = nn.LayerNorm(32), nn.Linear(32, 32)
        integers = torch.randint(-8, 8, (32, 32)).to(torch.int8)
        self.int4.weight = int4_weight(integers, torch.rand(32, 1) + 1)
        self.register_buffer("scale", torch.rand(32), persistent=False)
        self.requires_grad_(False)

    def forward(self, x):
        rows = x.shape[0]
        x = self.int4(F.silu(self.norm(x)) * self.scale).to(torch.float32)
        first, second = F.gelu(x.transpose(0, 1).reshape(rows * 4, 32)).chunk(2, dim=-1)
        places = torch.arange(rows)
        seen = (places[:, None] >= places) & (places > 0)
        weights = torch.where(seen, 0.0, -1e9).softmax(-1)
        mixed = weights @ torch.addcmul(first, first, second).view(rows, -1)
        return torch.cat([mixed, mixed], -1).view(rows, 4, 32) + x


class Kinds(nn.Module):
    """One operator, of inputs that differ in one thing each."""

    def forward(self, x):
        turned, other = x.transpose(0, 1), x + 1
        return (
            x.reshape(-1),
            turned.reshape(-1),
            turned.contiguous().reshape(-1),  # the same sizes, other strides
            x[1:].reshape(-1),
            F.silu(x),
            F.silu(x.to(torch.bfloat16)),
            x.softmax(0),
            x.softmax(1),
            x.to(torch.float32),
            x.to(torch.float64),
            torch.addcmul(x, x, other),
            torch.addcmul(x, other, x),
            torch.addcmul(x, other, other),
        )


class Writes(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[:, 0] = 0.0
        return F.silu(y)


def traced(module):
    with torch.no_grad():
        return export(module, (X,), dynamic_shapes=({0: ROWS},), strict=False)


def rules():
    found = dict(default_decompositions())
    del found[LINEAR]
    return found


def described(program):
    """What the inputs stand for, and nodes by number, with operator, arguments and sizes: a size by
    its formula, wherever it is computed. Checks compute nothing, and lowering leaves them out."""
    number, lines = {}, []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            number[node] = str(value)
        elif node.target is not CHECK:
            args = map_arg((node.args, node.kwargs), number.get)
            number[node] = f"%{len(lines)}"
            call = node.target if node.op == "call_function" else node.op
            sizes = str(value.shape) if isinstance(value, torch.Tensor) else None
            lines.append((call, sizes, str(args)))
    specs = program.graph_signature.input_specs
    return lines, [(spec.kind, spec.target) for spec in specs], list(program.state_dict)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(Block(), Block()), Kinds, Writes])
def test_graph_and_results_are_those_of_torch(make):
    program = traced(make())
    theirs, ours = program.run_decompositions(rules()), decomposed(program, rules())
    assert described(ours) == described(theirs)
    for rows in (3, 5, 64):
        x = torch.randn(rows, 4, 32)
        torch.testing.assert_close(ours.module()(x), theirs.module()(x), rtol=0, atol=0)


def test_a_linear_that_no_rule_breaks_up_stays_whole():
    graph = decomposed(traced(Block()), rules()).graph
    assert len(graph.find_nodes(op="call_function", target=LINEAR)) == 1


def test_blocks_that_are_alike_are_traced_once(monkeypatch):
    asked = []
    trace = decompose.aot_export_module

    def counted(*args, **kwargs):
        asked.append(args)
        return trace(*args, **kwargs)

    monkeypatch.setattr(decompose, "aot_export_module", counted)
    counts = []
    for blocks in (1, 2, 4):
        decomposed(traced(nn.Sequential(*(Block() for _ in range(blocks)))), rules())
        counts.append(len(asked))
        asked.clear()
    # The second block's input is no placeholder.
    assert counts[0] > 0 and counts[1] == counts[2] <= counts[0] + 1

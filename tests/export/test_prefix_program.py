"""Every architecture in scope scores rows behind a prefix as it scores rows that begin with it, and
lowered as eagerly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, BOUNDS, LOWERED, some_mask, tiny, tiny_to_lower
from seedtune.export.lower.lower import lower
from seedtune.export.lower.trace import trace_behind
from seedtune.export.program.generate_program import GenerateProgram
from seedtune.export.program.prepare_program import prepare_program
from seedtune.export.quantise.int4 import quantise_linears_
from seedtune.runtime.engines.executorch_native import NativeProgram

PREFIX, ROWS, LENGTH, PROBES = 11, 3, 7, 2
"""The window of 8 tokens of some begins within the prefix, and for later tokens behind it."""


def inputs(score, values):
    """Of ``score``: rows behind the prefix, three positions of each."""
    generator = torch.Generator().manual_seed(3)
    columns = torch.tensor([[0, 4, 6]] * ROWS) + LENGTH * torch.arange(ROWS)[:, None]
    probes = torch.from_numpy(values.astype(np.float32))[None].repeat(PROBES, 1)
    probes += 0.3 * torch.randn(probes.shape, generator=generator)
    return [
        torch.randint(3, 96, (ROWS, LENGTH), generator=generator),
        columns.flatten(),
        torch.randint(3, 96, (columns.numel(), 4), generator=generator),
        probes,
        0.05 * torch.randn(score.adapter_shape, generator=generator),
    ]


def front():
    return torch.randint(3, 96, (1, PREFIX), generator=torch.Generator().manual_seed(4))


def read(generate, probes):
    """The prefix's keys and values under each of ``probes``, in one pass of ``generate``."""
    empty = [
        torch.zeros(heads, *shape)
        for heads, width in generate.score.cache_shapes
        for shape in ((width, 1), (1, width))
    ]
    found = []
    for values in probes:
        columns, none = generate.columns(values[None]), torch.zeros(generate.score.adapter_shape)
        _, *new = generate(front(), torch.tensor([0]), columns, none, *empty)
        found.append([part.transpose(1, 2) if n % 2 == 0 else part for n, part in enumerate(new)])
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def prepared(model, quantised=False, bounds=BOUNDS):
    program, surgery = prepare_program(model, some_mask(model), bounds)
    generate = GenerateProgram(program, context=32, chunk=16).eval()
    if quantised:
        quantise_linears_(program)
    return program, generate, inputs(program, surgery.values)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_behind_a_prefix_are_scored_as_rows_that_begin_with_it(name):
    score, generate, given = prepared(tiny(name))
    tokens, positions, *rest = given
    whole = torch.cat([front().expand(ROWS, -1), tokens], dim=1)
    row, column = positions // LENGTH, positions % LENGTH
    with torch.no_grad():
        logp, states = score(*given, *read(generate, given[3]))
        joined, wanted = score(whole, row * whole.shape[1] + PREFIX + column, *rest)
        alone, own = score(*given)
    assert (logp - joined).abs().max() < 1e-3
    assert (alone - joined).abs().max() > 1e-2, "the prefix must matter"
    of_token = score.adapter_shape[1]
    assert (states - wanted)[:, :, :of_token].abs().max() < 1e-3
    # A mean is of the row's own tokens: that of its first token is the token's own state.
    first = column == 0
    assert states.shape == own.shape
    assert (states - wanted)[:, first, of_token:].abs().max() > 1e-2


def test_a_window_that_cuts_no_row_may_cut_the_prefix():
    score, generate, given = prepared(tiny("Gemma3"))
    with torch.no_grad():
        prefix = read(generate, given[3])
        wanted, _ = score(*given, *prefix)
    short, _, _ = prepared(tiny("Gemma3"), bounds=replace(BOUNDS, length=8, prefix=PREFIX))
    with torch.no_grad():
        found, _ = short(*given, *prefix)
    assert torch.equal(found, wanted)


# Llama's is in the bundle that the engines' tests read.
@pytest.mark.parametrize("name", LOWERED[1:])
def test_lowered_it_follows_the_eager_one(name, tmp_path):
    bounds = replace(BOUNDS, prefix=20)
    score, generate, given = prepared(tiny_to_lower(name), quantised=True, bounds=bounds)
    with torch.no_grad():
        prefix = read(generate, given[3])
        wanted = [each.numpy() for each in score(*given, *prefix)]
    file = tmp_path / "program.pte"
    lower(score, {"behind": lambda: trace_behind(score)}, file)
    lowered = NativeProgram(file)
    arrays = [each.numpy() for each in (*given, *prefix)]
    found = lowered.run("behind", arrays, *(each.shape for each in wanted))
    lowered.close()
    for each, eager in zip(found, wanted, strict=True):
        assert np.abs(each - eager).mean() < 0.05

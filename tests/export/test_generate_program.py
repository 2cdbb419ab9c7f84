"""Every architecture in scope writes: ``generate`` follows transformers' own forward, and lowered,
the eager int4 program."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, BOUNDS, LOWERED, some_mask, tiny, tiny_to_lower
from seedtune.export.lower.lower import lower
from seedtune.export.lower.trace import trace_columns, trace_generate
from seedtune.export.program.generate_program import GenerateProgram
from seedtune.export.program.prepare_program import prepare_program
from seedtune.export.quantise.int4 import quantise_linears_
from seedtune.runtime.engines.executorch_native import NativeProgram

PARTS = (7, 1, 1, 8, 1, 4)
"""A text of 22 tokens in passes; the window of 8 cuts inside the cache and inside a pass."""


def prepared(model):
    program, surgery = prepare_program(model, some_mask(model), BOUNDS)
    values = torch.from_numpy(surgery.values.astype(np.float32))[None]
    return program, GenerateProgram(program, context=32, chunk=8).eval(), values


def text():
    generator = torch.Generator().manual_seed(5)
    return torch.randint(3, 96, (1, sum(PARTS)), generator=generator)


def written(run, shapes, slots=24):
    """Logits behind each of ``PARTS``, by ``run(tokens, start, cache)``."""
    cache = [
        np.zeros((heads, *shape), np.float32)
        for heads, width in shapes
        for shape in ((width, slots), (slots, width))
    ]
    at, found = 0, []
    for count in PARTS:
        logits, *new = run(text()[:, at : at + count].numpy(), np.array([at]), cache)
        for keys, added in zip(cache[::2], new[::2], strict=True):
            keys[:, :, at : at + count] = added.transpose(0, 2, 1)
        for values, added in zip(cache[1::2], new[1::2], strict=True):
            values[:, at : at + count] = added
        at += count
        found.append(logits[0])
    return found


def eagerly(program, values, adapter):
    def run(tokens, start, cache):
        given = [torch.from_numpy(each.copy()) for each in (tokens, start, *cache)]
        with torch.no_grad():
            found = program(given[0], given[1], program.columns(values), adapter, *given[2:])
        return [each.numpy() for each in found]

    return run


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generate_follows_the_model_itself(name):
    with torch.no_grad():
        wanted = tiny(name)(input_ids=text(), use_cache=False).logits[0].numpy()
    score, program, values = prepared(tiny(name))
    found = written(eagerly(program, values, torch.zeros(score.adapter_shape)), score.cache_shapes)
    ends = np.cumsum(PARTS) - 1
    for logits, end in zip(found, ends, strict=True):
        # fp16 values and the int8 embedding are the only differences
        assert np.abs(logits - wanted[end]).max() < 0.1


# Llama's is in the bundle that the engines' tests read.
@pytest.mark.parametrize("name", LOWERED[1:])
def test_lowered_generate_follows_the_eager_one(name, tmp_path):
    score, program, values = prepared(tiny_to_lower(name))
    quantise_linears_(program)
    generator = torch.Generator().manual_seed(2)
    values += 0.3 * torch.randn(values.shape, generator=generator)
    adapter = 0.05 * torch.randn(score.adapter_shape, generator=generator)
    file = tmp_path / "program.pte"
    traces = {
        "generate": lambda: trace_generate(program),
        "columns": lambda: trace_columns(program),
    }
    lower(score, traces, file)
    lowered = NativeProgram(file)
    (columns,) = lowered.run("columns", [values.numpy()], (1, program.columns.size))

    def run(tokens, start, cache):
        inputs = [tokens, start, columns, adapter.numpy(), *cache]
        sizes = [
            (heads, tokens.shape[1], width) for heads, width in score.cache_shapes for _ in "kv"
        ]
        return list(lowered.run("generate", inputs, (1, 96), *sizes))

    wanted = written(eagerly(program, values, adapter), score.cache_shapes)
    plain = written(eagerly(program, values, torch.zeros_like(adapter)), score.cache_shapes)
    found = written(run, score.cache_shapes)
    lowered.close()
    for logits, eager, unmoved in zip(found, wanted, plain, strict=True):
        assert np.abs(logits - eager).mean() < 0.05
        assert np.abs(unmoved - eager).mean() > 0.1, "the adapter must matter"

"""Every architecture in scope, on a tiny random configuration: surgery is exact, and the exported
programs follow the eager int4 model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, BOUNDS, LOWERED, some_mask, tiny, tiny_to_lower
from block_states import block_states, mean_so_far
from seedtune.export.lower import onnx as onnx_form
from seedtune.export.lower import torch_graph as torch_form
from seedtune.export.lower.int4_operator import through_int4_operator_
from seedtune.export.lower.lower import lower
from seedtune.export.lower.stored_weights import FILE, StoredWeights
from seedtune.export.lower.trace import trace, trace_with_prefix
from seedtune.export.program.block_tap import tapped_blocks
from seedtune.export.program.prepare_program import prepare_program
from seedtune.export.program.score_program import PrefixProgram
from seedtune.export.program.sensitive_linear import SensitiveLinear
from seedtune.export.quantise.int4 import quantise_linears_
from seedtune.runtime.engines.executorch_binding import ExecutorchBinding
from seedtune.runtime.engines.onnxruntime import OnnxEngine
from seedtune.runtime.engines.read_prefix import ReadInPieces
from seedtune.runtime.engines.torch_program import TorchProgram
from seedtune.runtime.tasks import Batch


def reference(model, tokens, positions, candidates):
    """What transformers itself says, for one probe, with its own attention and masks."""
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    flat = torch.log_softmax(logits.float(), -1).reshape(-1, logits.shape[-1])[positions]
    return flat.gather(1, candidates)


def inputs(values, probes=2):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 96, (3, 20), generator=generator)
    positions = torch.tensor([19, 39, 59, 5])
    candidates = torch.randint(3, 96, (4, 5), generator=generator)
    rows = torch.from_numpy(values.astype(np.float32))[None].repeat(probes, 1)
    return tokens, positions, candidates, rows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_surgery_changes_nothing_but_rounding(name):
    model = tiny(name)
    mask = some_mask(model)
    tokens, positions, candidates, _ = inputs(np.zeros(1))
    wanted = reference(model, tokens, positions, candidates)
    program, surgery = prepare_program(model, mask, BOUNDS)
    with torch.no_grad():
        found, _ = program(*inputs(surgery.values))
    assert torch.equal(found[0], found[1])
    # fp16 values and the int8 embedding are the only differences
    assert (found[0] - wanted).abs().max() < 0.15
    assert (found[0] - wanted).abs().mean() < 0.03


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_hidden_states_are_those_of_the_model_itself(name):
    model = tiny(name)
    mask = some_mask(model)
    tokens, positions, _, _ = inputs(np.zeros(1))
    own = block_states(model, tokens)
    blocks, means = tapped_blocks(ARCHITECTURES[name]["num_hidden_layers"])
    states = [own[below].flatten(0, 1)[positions] for below in blocks]
    states += [mean_so_far(own[below]).flatten(0, 1)[positions] for below in means]
    wanted = torch.cat([each / each.square().mean(-1, keepdim=True).sqrt() for each in states], -1)
    program, surgery = prepare_program(model, mask, BOUNDS)
    with torch.no_grad():
        _, found = program(*inputs(surgery.values))
    assert (program.tap.blocks, program.tap.mean_blocks) == (blocks, means)
    assert torch.equal(found[0], found[1])
    assert (found[0] - wanted).abs().mean() < 0.03


def score(engine, *arguments):
    tokens, positions, candidates, *rest = (each.numpy() for each in arguments)
    batch = Batch(tokens, positions, candidates, gold=np.zeros(len(tokens), np.int64))
    scores = engine.score(batch, *rest)
    return scores.logp, scores.hidden


@pytest.mark.parametrize("name", LOWERED)
def test_program_follows_the_eager_int4_model(name, tmp_path):
    model = tiny_to_lower(name)
    program, surgery = prepare_program(model, some_mask(model), BOUNDS)
    quantise_linears_(program)
    entries = len(surgery.values)
    shape = program.adapter_shape
    file = tmp_path / "program.pte"
    lower(program, {"score": lambda: trace(program)}, file)
    width = 64 * len(program.tap.blocks + program.tap.mean_blocks)
    engine = ExecutorchBinding(file, BOUNDS, entries, width, shape, (), None)

    tokens, positions, candidates, rows = inputs(surgery.values, probes=3)
    rows[1] += 0.5 * torch.randn(entries, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted, states = program(tokens, positions, candidates, rows)
    found, hidden = score(engine, tokens, positions, candidates, rows)
    assert np.array_equal(found[0], found[2]), "equal values must give equal bits"
    assert np.array_equal(hidden[0], hidden[2]), "equal values must give equal bits"
    assert np.abs(hidden - states.numpy()).mean() < 0.05
    difference = np.abs(found - wanted.numpy())
    effect = np.abs(found[1] - found[0]).mean()
    assert effect > 0.05, "the values must matter"
    assert difference.mean() < 0.05 and difference.mean() < effect / 2

    adapter = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted, _ = program(tokens, positions, candidates, rows, adapter)
    moved, same = score(engine, tokens, positions, candidates, rows, adapter)
    assert np.array_equal(same, hidden), "an adapter moves no state"
    assert np.abs(moved - wanted.numpy()).mean() < 0.05 < np.abs(moved - found).mean() / 2
    zeros, _ = score(engine, tokens, positions, candidates, rows, torch.zeros(shape))
    assert np.array_equal(zeros, found), "zeros leave every bit"

    # Another shape inside the bounds, and the smallest one.
    for rows_, length, scored, choices, probes in ((4, 24, 12, 5, 1), (1, 2, 1, 1, 1)):
        generator = torch.Generator().manual_seed(3)
        other = (
            torch.randint(3, 96, (rows_, length), generator=generator),
            torch.randint(0, rows_ * length, (scored,), generator=generator),
            torch.randint(3, 96, (scored, choices), generator=generator),
            rows[:probes],
        )
        with torch.no_grad():
            wanted, states = program(*other)
        found, hidden = score(engine, *other)
        assert np.abs(found - wanted.numpy()).mean() < 0.05
        assert np.abs(hidden - states.numpy()).mean() < 0.05


WITH_PREFIX = replace(BOUNDS, prefix=40)
FRONT = np.random.default_rng(5).integers(3, 96, 30)
"""A prefix of more tokens than a row may have."""


def written(form, traced, folder):
    weights = StoredWeights()
    made = form(traced, weights, {"score": {}}, 0)
    places = weights.placed(None, folder / FILE)
    described, content = made.serialised(places)
    assert described.files[1:] == (FILE,)
    (folder / described.files[0]).write_bytes(content)
    return folder / described.files[0]


def other_form(model):
    """The eager program, its values, and inputs with values that matter and an adapter."""
    program, surgery = prepare_program(model, some_mask(model), WITH_PREFIX)
    quantise_linears_(program)
    through_int4_operator_(program)
    *request, rows = inputs(surgery.values, probes=3)
    generator = torch.Generator().manual_seed(2)
    rows[1] += 0.5 * torch.randn(len(surgery.values), generator=generator)
    adapter = 0.1 * torch.randn(program.adapter_shape, generator=generator)
    traced = trace_with_prefix(PrefixProgram(program))
    return program, traced, (*request, rows, adapter)


def behind(request):
    """Rows behind ``FRONT``."""
    tokens, positions, candidates = (each.numpy() for each in request[:3])
    return Batch(tokens, positions, candidates, np.zeros(len(tokens), np.int64), FRONT)


def of_whole(program, request):
    """Log-probabilities of the eager program where the rows hold ``FRONT``, too."""
    whole = behind(request).whole
    parts = (whole.tokens, whole.positions, whole.candidates)
    with torch.no_grad():
        found, _ = program(*map(torch.from_numpy, parts), *request[3:])
    return found.numpy()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_torch_program_is_the_eager_one(name, tmp_path):
    program, traced, request = other_form(tiny(name))
    file = written(torch_form.TorchProgram, traced, tmp_path)
    run = TorchProgram(
        file.read_bytes(),
        {FILE: tmp_path / FILE},
        torch.device("cpu"),
        torch.float32,
        file,
        cache=program.cache_shapes,
    )
    with torch.no_grad():
        wanted = program(*request)
    none = torch.zeros(0, dtype=torch.int64)

    def read(asked, kept, before):
        return run.run([*map(torch.as_tensor, [*asked, kept]), *before])

    prefix = ReadInPieces(program.cache_shapes, BOUNDS.length, torch.zeros, read, torch.cat)
    values, adapter = (each.numpy() for each in request[3:])
    empty = prefix.blocks(FRONT[:0], values, [adapter])
    for found, own in zip(run.run([*request, none, *empty]), wanted, strict=False):
        torch.testing.assert_close(found, own, atol=1e-4, rtol=1e-4)
    blocks = prefix.blocks(FRONT, values, [adapter])
    found = run.run([*request, none, *blocks])[0]
    np.testing.assert_allclose(found.numpy(), of_whole(program, request), atol=1e-3)
    assert (wanted[0][1] - wanted[0][0]).abs().mean() > 0.05, "the values must matter"
    nodes = json.loads(file.read_bytes())["nodes"]
    added = sum(each[1] == "seedtune.add_product" for each in nodes)
    sparse = sum(isinstance(module, SensitiveLinear) for module in program.modules())
    assert added == sparse, "each sparse term is added in place"


@pytest.mark.parametrize("name", LOWERED)
def test_the_onnx_program_is_the_eager_one(name, tmp_path):
    program, traced, request = other_form(tiny_to_lower(name))
    file = written(onnx_form.OnnxProgram, traced, tmp_path)
    with torch.no_grad():
        wanted = program(*request)
    tokens, positions, candidates, values, adapter = (each.numpy() for each in request)
    batch = Batch(tokens, positions, candidates, gold=np.zeros(len(tokens), np.int64))
    beside = [each.name for each in tmp_path.iterdir()]
    data, cache = file.read_bytes(), program.cache_shapes
    with OnnxEngine(data, beside, file, WITH_PREFIX, 1, cache=cache) as engine:
        found = engine.score(batch, values, adapter)
        np.testing.assert_allclose(found.logp, wanted[0].numpy(), atol=1e-3)
        np.testing.assert_allclose(found.hidden, wanted[1].numpy(), atol=1e-3)
        assert np.array_equal(found.logp[0], found.logp[2])
        one = Batch(tokens[:1, :2], positions[3:] % 2, candidates[:1, :1], gold=batch.gold[:1])
        assert engine.score(one, values[:1]).logp.shape == (1, 1, 1)
        found = engine.score(behind(request), values, adapter)
        np.testing.assert_allclose(found.logp, of_whole(program, request), atol=1e-3)

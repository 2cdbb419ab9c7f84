"""Programs of every form that take terms do what the eager one does; which exports have some."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch
from architectures import BOUNDS, some_mask, tiny
from seedtune.export import export
from seedtune.export.lower import onnx as onnx_form
from seedtune.export.lower import torch_graph as torch_form
from seedtune.export.lower.int4_operator import through_int4_operator_
from seedtune.export.lower.lower import lower
from seedtune.export.lower.stored_weights import FILE, StoredWeights
from seedtune.export.lower.trace import trace, trace_with_prefix
from seedtune.export.program.prepare_program import prepare_program
from seedtune.export.program.score_program import PrefixProgram
from seedtune.export.quantise.int4 import quantise_linears_
from seedtune.export.text.make_terms import make_terms
from seedtune.runtime.bundle import Bounds, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.executorch_native import NativeProgram
from seedtune.runtime.engines.onnxruntime import OnnxEngine
from seedtune.runtime.engines.read_prefix import ReadInPieces
from seedtune.runtime.engines.torch_program import TorchProgram
from seedtune.runtime.scoring.text_head import TextHead
from seedtune.runtime.tasks import Batch

RANK = 3
WITH_PREFIX = replace(BOUNDS, prefix=20)
FRONT = np.random.default_rng(5).integers(3, 96, 11)
"""What stands in front of every row."""


def requested(surgery, program):
    """Rows, positions, candidates, values, an adapter and terms, all of which matter."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.from_numpy(surgery.values.astype(np.float32))[None].repeat(2, 1)
    rows[1] += 0.3 * torch.randn(rows.shape[1], generator=generator)
    return [
        torch.randint(3, 96, (3, 7), generator=generator),
        torch.tensor([0, 6, 13, 20]),
        torch.randint(3, 96, (4, 5), generator=generator),
        rows,
        0.05 * torch.randn(program.adapter_shape, generator=generator),
        *(0.1 * torch.randn(shape, generator=generator) for shape in program.terms_shapes),
    ]


class World:
    """The eager program and what it gives: its activations in int8, as ExecuTorch has them, or in
    float32, as the other forms do."""

    def __init__(self, folder, exact):
        self.folder, model = folder, tiny("Llama", blocks=3)
        program, surgery = prepare_program(model, some_mask(model), WITH_PREFIX, RANK)
        quantise_linears_(program)
        text = np.random.default_rng(1).integers(0, 96, (12, 20))
        assert make_terms(program, text, surgery.values) is not None
        if exact:
            through_int4_operator_(program)
        self.program, self.request = program, requested(surgery, program)
        self.shapes, self.cache = program.terms_shapes, program.cache_shapes
        tokens, positions, candidates, *rest = self.request
        whole = torch.cat([torch.from_numpy(FRONT)[None].expand(3, -1), tokens], dim=1)
        at = positions // 7 * whole.shape[1] + len(FRONT) + positions % 7
        with torch.no_grad():
            self.wanted = program(*self.request)
            self.behind = program(whole, at, candidates, *rest)
            self.plain = program(*self.request[:5])

    @cached_property
    def traced(self):
        return trace_with_prefix(PrefixProgram(self.program))

    def written(self, form):
        """The file of one of the other forms."""
        weights = StoredWeights()
        made = form(self.traced, weights, {"score": {}}, len(self.shapes))
        described, content = made.serialised(weights.placed(None, self.folder / FILE))
        (self.folder / described.files[0]).write_bytes(content)
        return self.folder / described.files[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("terms"), exact=True)


def test_the_eager_program_returns_what_terms_are_learned_from(world):
    assert len(world.shapes) == 6, "of the upper two of three blocks"
    sizes, *middles = world.wanted[2:]
    assert sizes.shape == (2, 4, 2) and [each.shape for each in middles] == [(2, 4, 64)] * 2
    assert (world.wanted[0] - world.plain[0]).abs().mean() > 0.1, "terms must matter"
    assert torch.equal(world.wanted[3], world.plain[3]), "below its MLP a block has none"
    assert (world.wanted[4] - world.plain[4]).abs().mean() > 0.1


def test_the_torch_program_is_the_eager_one(world):
    file = world.written(torch_form.TorchProgram)
    files, cpu = {FILE: world.folder / FILE}, torch.device("cpu")
    sizes = world.cache, world.shapes
    run = TorchProgram(file.read_bytes(), files, cpu, torch.float32, file, None, *sizes)
    values, *tuned = (each.numpy() for each in world.request[3:])

    def passed(request, kept, before):
        given = map(torch.as_tensor, [*request[:5], kept, *request[5:]])
        return run.run([*given, *before])

    prefix = ReadInPieces(world.cache, 4, torch.zeros, passed, torch.cat)
    for front, wanted in ((FRONT[:0], world.wanted), (FRONT, world.behind)):
        found = passed(world.request, np.empty(0, np.int64), prefix.blocks(front, values, tuned))
        assert len(found) == 5 + 2 * 3
        for number, (each, eager) in enumerate(zip(found, wanted, strict=False)):
            if number == 1:  # behind a prefix a mean is of the row's own tokens
                each, eager = each[..., :128], eager[..., :128]
            np.testing.assert_allclose(each, eager, atol=1e-3, rtol=1e-3)


def test_the_onnx_program_is_the_eager_one(world):
    file = world.written(onnx_form.OnnxProgram)
    beside = [each.name for each in world.folder.iterdir()]
    tokens, positions, candidates, values, adapter, *terms = (
        each.numpy() for each in world.request
    )
    batch = Batch(tokens, positions, candidates, np.zeros(len(tokens), np.int64))
    opened = OnnxEngine(file.read_bytes(), beside, file, WITH_PREFIX, 1, cache=world.cache)
    with opened as engine:
        assert engine.terms_shapes == tuple(world.shapes)
        for front, wanted in ((FRONT[:0], world.wanted), (FRONT, world.behind)):
            asked = replace(batch, prefix=front)
            found = engine.score(asked, values, adapter, terms, inside=True)
            np.testing.assert_allclose(found.logp, wanted[0], atol=1e-3)
            np.testing.assert_allclose(found.hidden[..., :128], wanted[1][..., :128], atol=1e-3)
            for each, eager in zip(found.inside, wanted[2:], strict=True):
                np.testing.assert_allclose(each, eager, atol=1e-3, rtol=1e-3)
        plain = engine.score(batch, values, adapter)
        np.testing.assert_allclose(plain.logp, world.plain[0], atol=1e-3)


def test_executorch_s_program_follows_the_eager_one(tmp_path):
    """Behind a prefix, the bundle of the engines' tests does."""
    world = World(tmp_path, exact=False)
    traces = {"score": lambda: trace(world.program)}
    lower(world.program, traces, tmp_path / "program.pte")
    lowered = NativeProgram(tmp_path / "program.pte")
    given = [each.numpy() for each in world.request]
    shapes = [each.shape for each in world.wanted]
    zeros = [0 * each for each in given[5:]]
    for inputs, wanted in ((given, world.wanted), ([*given[:5], *zeros], world.plain)):
        for each, eager in zip(lowered.run("score", inputs, *shapes), wanted, strict=True):
            exact = eager.numpy()
            assert np.abs(each - exact).mean() < 0.05 * np.abs(exact).mean()
    lowered.close()


TINY = Bounds(probes=2, rows=2, length=16, positions=8, candidates=2)
CHOOSES = {
    "kind": "classification", "template": "{text} It was", "label_field": "label",
    "verbalisers": {"1": " great", "0": " terrible"},
}  # fmt: skip
WRITES = {"kind": "completion", "template": "{text}", "completion_field": "said"}


def exported(loaded, folder, to=("torch",), **changes):
    text = np.random.default_rng(0).integers(0, 300, (4, 16))
    mask = {"model.layers.1.mlp.gate_proj": np.array([3, 70])}
    calibrated = {"calibrate": lambda tokenizer: (text, "t"), "rounding": "nearest"}
    given = {"mask": mask, "bounds": TINY, "to": to, **calibrated, **changes}
    return export.export_model(loaded, folder, **given)


def opens(bundle):
    """With what the bundle says of its program."""
    (program,) = bundle.programs
    name = {"onnx": "onnxruntime", "torch": "torch-int4:cpu"}[program.format]
    with open_engine(open_bundle(bundle.path), 1, name=name) as engine:
        return engine.terms_shapes == bundle.terms_shapes


@pytest.mark.parametrize(
    ("asked", "rank"),
    [
        ({}, 8),
        ({"task": WRITES}, 8),
        ({"task": CHOOSES}, 0),
        ({"terms": 0}, 0),
        ({"terms": 5, "task": CHOOSES}, 5),
    ],
)
def test_a_bundle_has_them_where_a_device_may_learn_to_write(tiny_llama, tmp_path, asked, rank):
    bundle = exported(tiny_llama, tmp_path / "b", **asked)
    wanted = ((64, rank), (64, rank), (32, rank)) if rank else ()
    assert bundle.terms_shapes == wanted and opens(bundle)
    assert bundle.text_head is not None
    assert (tmp_path / "b" / "terms.safetensors").exists() == bool(rank)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_matrices_are_found_without_executorch_s_program(tiny_llama, tmp_path, form):
    weights = [
        tiny_llama.model.model.layers[1].mlp.get_submodule(name).weight.float().numpy().copy()
        for name in ("gate_proj", "up_proj", "down_proj")
    ]
    bundle = exported(tiny_llama, tmp_path / "b", (form,))
    assert bundle.terms.file == "weights.safetensors" and opens(bundle)
    for matrix, weight in zip(TextHead.of(bundle).terms.matrices, weights, strict=True):
        apart = np.abs(matrix.whole() - weight)
        # Codes are of 15 steps in a group; columns of sensitive entries are what they were.
        assert apart.mean() < 0.15 * np.abs(weight).mean()
        assert not apart[:, matrix.columns].any()
    gate, up, down = (matrix.columns.tolist() for matrix in TextHead.of(bundle).terms.matrices)
    assert (gate, up, down) == ([3, 6], [], [])


@pytest.mark.parametrize("lacking", ["a frame", "terms"])
def test_a_program_takes_none_where_the_bundle_has_nothing_for_them(
    tiny_llama, tmp_path, monkeypatch, lacking
):
    """Of a model whose last norm cannot be read off, or whose blocks turn out to be others."""
    if lacking == "a frame":
        monkeypatch.setattr(export, "make_frame", lambda *given: None)
    else:
        block = tiny_llama.model.model.layers[1]
        block.mlp.register_forward_hook(lambda module, given, output: output * 1.01)
    bundle = exported(tiny_llama, tmp_path / "b")
    assert bundle.terms is None and opens(bundle)

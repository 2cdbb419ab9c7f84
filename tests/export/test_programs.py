"""One export for several engines: the codes stand once, and all programs say the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported_bundle import moved, request
from safetensors.torch import load
from seedtune.export.export import with_prefix
from seedtune.export.lower import int4_operator, stored_weights
from seedtune.export.lower.programs import FORMATS, check_formats
from seedtune.export.lower.stored_weights import StoredWeights
from seedtune.runtime.bundle import DEFAULT_BOUNDS, open_bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.errors import ModelError

SIZES = [(1, 2, 1, 1, 1), (3, 20, 9, 3, 2), (8, 32, 48, 4, 2), (20, 12, 5, 2, 1)]
"""Rows, length, positions, candidates, probes; the last has more rows than the bound, shorter."""


def asked(bundle, sizes):
    rows, length, scored, choices, probes = sizes
    return request(bundle, rows=rows, length=length, scored=scored, choices=choices, probes=probes)


def test_the_bundle_says_what_its_programs_are(reach):
    assert [program.format for program in reach.programs] == [*FORMATS]
    assert [program.activations for program in reach.programs] == [
        "int8 per token", "float32", "float32, fp16 on a GPU",
    ]  # fmt: skip
    for program in reach.programs[1:]:
        assert program.files[1:] == ("program.pte", "weights.safetensors")
    assert open_bundle(reach.path).sha256 == reach.sha256


@pytest.mark.parametrize("sizes", SIZES)
def test_all_programs_say_the_same_but_for_the_activations(reach, sizes):
    found, given = {}, asked(reach, sizes)
    for name in ("executorch-binding", "onnxruntime", "torch-int4:cpu"):
        with open_engine(reach, name=name) as engine:
            found[name] = engine.score(*given, *moved(*given), inside=True)
    native, onnx, eager = found.values()
    # Float32 twice; int8 activations are apart, as they are from the eager model.
    np.testing.assert_allclose(onnx.logp, eager.logp, atol=2e-5)
    np.testing.assert_allclose(onnx.hidden, eager.hidden, atol=2e-5)
    for each, other, lowered in zip(onnx.inside, eager.inside, native.inside, strict=True):
        np.testing.assert_allclose(each, other, atol=1e-4)
        assert np.abs(lowered - each).mean() < 0.05 * np.abs(each).mean()
    assert np.abs(native.logp - onnx.logp).max() < 0.1
    assert np.abs(native.logp - onnx.logp).mean() < 0.02


@pytest.mark.parametrize(
    ("formats", "context", "prefix"),
    [
        (["onnx", "torch"], 0, 72),
        (["onnx"], 2048, 72),
        (["executorch", "onnx"], 50, 50),
        (["executorch", "torch"], 0, 0),
    ],
)
def test_a_prefix_is_as_long_as_every_program_reads(formats, context, prefix):
    config = SimpleNamespace(max_position_embeddings=200)  # of which a row takes 128
    assert with_prefix(DEFAULT_BOUNDS, formats, context, config).prefix == prefix


def test_codes_stand_once(reach):
    """Matrices of 4 096 bytes or more lie in ``program.pte``; the rest is not there twice."""
    content = json.loads((reach.path / "program.json").read_bytes())
    pte = (reach.path / "program.pte").read_bytes()
    places = {}
    for name, (dtype, shape, file, offset) in content["tensors"].items():
        size = int(np.prod(shape)) * getattr(torch, dtype).itemsize
        places[name] = (file, offset, size)
        if dtype == "uint8" and size >= stored_weights._LEAST:
            assert file == "program.pte", name
            assert pte[offset : offset + size].strip(b"\0")
    assert {file for file, _, _ in places.values()} == {"program.pte", "weights.safetensors"}
    assert places["b_score_head_packed_000"][0] == "program.pte"
    assert places["b_score_embedding_weight"][0] == "program.pte"


def test_without_executorch_all_weights_stand_in_one_file(reach, only_torch):
    (program,) = only_torch.programs
    assert program.files == ("program.json", "weights.safetensors")
    both = [open_engine(each, 1, name="torch-int4:cpu") for each in (reach, only_torch)]
    wanted, found = (engine.score(*asked(reach, SIZES[1])) for engine in both)
    np.testing.assert_allclose(found.logp, wanted.logp, atol=2e-5)


def test_a_wide_matrix_is_multiplied_in_parts_that_lie_one_after_another(reach, only_torch):
    content = json.loads((only_torch.path / "program.json").read_bytes())
    parts = [content["tensors"][f"b_score_head_packed_{part:03}"] for part in range(3)]
    assert [shape[0] for _, shape, _, _ in parts] == [120, 120, 60]
    words = only_torch.text_head
    if words is not None:  # what a head for text reads
        assert (words.words.file, words.words.codes) == ("weights.safetensors", parts[0][3])
    assert reach.text_head is None or reach.text_head.words.file == "program.pte"


def test_every_value_reaches_every_program(reach):
    batch, values = asked(reach, (2, 20, 6, 3, 2))
    values[:] = reach.values
    for name in ("executorch-binding", "onnxruntime", "torch-int4:cpu"):
        with open_engine(reach, name=name) as engine:
            for layer in reach.layers:
                other = values.copy()
                other[1, layer.offset : layer.offset + layer.count] += 2.0
                found = engine.score(batch, other).logp
                assert np.abs(found[1] - found[0]).max() > 1e-3, (name, layer.name)


def test_formats_are_checked_before_any_work():
    assert check_formats(["torch", "executorch", "torch"]) == ("executorch", "torch")
    with pytest.raises(ModelError, match="unknown program format 'tflite'; take executorch, onnx"):
        check_formats(["tflite"])
    with pytest.raises(ModelError, match="no program format"):
        check_formats([])


class TestStoredWeights:
    def tensors(self):
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randint(0, 256, (64, 4, 16), generator=generator).to(torch.uint8),
            torch.randn(40, generator=generator).to(torch.bfloat16),
            torch.arange(1000),
        ]

    def test_what_another_file_holds_stays_there(self, tmp_path):
        codes, scales, numbers = self.tensors()
        weights = StoredWeights()
        names = [weights.add(name, each) for name, each in zip("abc", self.tensors(), strict=True)]
        # Two places have the first bytes, one of them all; a third is not aligned.
        raw = codes.numpy().tobytes()
        held = b"x" + raw + bytes(15) + raw[:2048] + bytes(2048) + raw + numbers.numpy().tobytes()
        (tmp_path / "program.pte").write_bytes(held)
        places = weights.placed(tmp_path / "program.pte", tmp_path / "w")
        assert places["a"] == ("program.pte", 1 + len(raw) + 15 + 4096, len(raw))
        assert places["c"].file == "program.pte"  # it has 8 000 bytes
        assert places["b"].file == "weights.safetensors"
        at, written = places["b"].offset, (tmp_path / "w").read_bytes()
        assert load(written).keys() == {"b"}
        assert written[at : at + 80] == scales.view(torch.uint8).numpy().tobytes()
        assert names == ["a", "b", "c"]

    def test_equal_tensors_are_kept_once_and_names_never_clash(self, tmp_path):
        codes, scales, _ = self.tensors()
        weights = StoredWeights()
        assert weights.add("a", codes) == weights.add("other", codes.clone()) == "a"
        assert weights.add("a", scales) != "a"
        assert weights.add("flat", codes.reshape(-1)) == "a"  # programs say the shape
        assert weights.add("part", codes[:9]) == "part"
        places = weights.placed(None, tmp_path / "w")
        assert [each.bytes for each in places.values()] == [4096, 80, 576]

    def test_a_file_that_holds_all_leaves_none_to_write(self, tmp_path):
        codes = self.tensors()[0]
        weights = StoredWeights()
        weights.add("a", codes)
        (tmp_path / "program.pte").write_bytes(codes.numpy().tobytes())
        weights.placed(tmp_path / "program.pte", tmp_path / "w")
        assert not (tmp_path / "w").exists()


def test_the_onnx_file_is_small_and_sound(reach):
    """Nothing of the exporter's notes stays, and the standard's own checker takes it."""
    import onnx

    file = reach.path / "program.onnx"
    model = onnx.load(file, load_external_data=False)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    levels = {
        each.i
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        for each in node.attribute
        if each.name == "accuracy_level"
    }
    assert levels == {0}
    onnx.checker.check_model(str(file))
    assert [each.name for each in model.graph.input][:4] == [
        "tokens", "positions", "candidates", "values",
    ]  # fmt: skip
    taken = [
        "adapter",
        "kept",
        *(f"term_{n}" for n in range(3)),
        *(f"prefix_{n}" for n in range(4)),
    ]
    assert [each.name for each in model.graph.input][4:] == taken
    given = ["inside_0", "inside_1", *(f"own_{n}" for n in range(4))]
    assert [each.name for each in model.graph.output] == ["logp", "hidden", *given]


@pytest.fixture(scope="module")
def only_torch(tmp_path_factory):
    """The same model, mask and text, exported for torch alone, its head in parts."""
    from exported_bundle import export_tiny_bundle

    folder: Path = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(int4_operator, "WIDE", 200)  # its head has 300 rows
        patched.setattr(int4_operator, "PART", 120)
        return export_tiny_bundle(folder, ("torch",))

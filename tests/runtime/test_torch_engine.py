"""The torch engine: what it reads, what it refuses, and on a GPU the limit that it keeps to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_bundle import arrays, request
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import open_engine, torch_int4, torch_weights
from seedtune.runtime.engines.torch_program import TorchProgram
from seedtune.runtime.errors import BundleError, EngineError

SOME = {"rows": 3, "length": 20, "scored": 9, "choices": 3, "probes": 2}
CPU = torch.device("cpu")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


def program(bundle, **changes):
    """The bundle's torch program, with fields of its JSON changed, or a first node more."""
    described = bundle.program("torch")
    assert described is not None
    own, *others = described.files
    content = json.loads((bundle.path / own).read_bytes())
    first, shape = changes.pop("first", None), changes.pop("prefix", None)
    if shape is not None:
        content["inputs"][-1][2] = shape
    content |= changes
    if first is not None:
        content["nodes"].insert(0, ["a", *first])
    files = {name: bundle.path / name for name in others}
    data, cache = json.dumps(content).encode(), bundle.prefix_cache
    terms = bundle.terms_shapes
    return TorchProgram(data, files, CPU, torch.float32, Path("p.json"), None, cache, terms)


def with_no_prefix(bundle):
    """What the program takes where rows stand behind nothing."""
    asked = [torch.from_numpy(each) for each in arrays(*request(bundle, **SOME))]
    for heads, width in bundle.prefix_cache:
        asked += [torch.zeros(2, heads, width, 0), torch.zeros(2, heads, 0, width)]
    return [*asked[:5], torch.zeros(0, dtype=torch.int64), *asked[5:]]


class TestScores:
    @pytest.mark.parametrize(("device", "apart"), [("cpu", 0.0), ("cpu-bf16", 0.05)])
    def test_the_number_format_of_the_products_is_the_only_difference(self, reach, device, apart):
        asked = request(reach, **SOME)
        with open_engine(reach, 1, name="torch-int4:cpu") as engine:
            wanted = engine.score(*asked)
        with open_engine(reach, 1, name=f"torch-int4:{device}") as engine:
            found = engine.score(*asked)
        difference = np.abs(found.logp - wanted.logp).max()
        assert difference <= apart and (difference > 0) == (apart > 0)
        assert found.logp.dtype == np.float32 and found.hidden is not None

    def test_a_matrix_is_unpacked_once_for_all_probes(self, reach, monkeypatch):
        unpacked = []
        real = TorchProgram._int4_linear
        monkeypatch.setattr(
            TorchProgram,
            "_int4_linear",
            lambda self, x, *rest: unpacked.append(tuple(x.shape)) or real(self, x, *rest),
        )
        batch, values = request(reach, **SOME)
        with open_engine(reach, 1, name="torch-int4:cpu") as engine:
            engine.score(batch, values)
        assert len(unpacked) == 15 and all(shape[0] == 2 for shape in unpacked)


class TestOpening:
    def test_a_file_that_is_altered_or_a_link(self, reach, tmp_path):
        (tmp_path / "linked").mkdir()
        for file in reach.path.iterdir():
            (tmp_path / "linked" / file.name).symlink_to(file)
        open_engine(open_bundle(tmp_path / "linked"), 1, name="torch-int4:cpu").close()
        shutil.copytree(reach.path, tmp_path / "b")
        copy = open_bundle(tmp_path / "b")
        data = (copy.path / "program.pte").read_bytes()
        (copy.path / "program.pte").write_bytes(data[:-9] + bytes(9))
        with pytest.raises(BundleError, match=r"program.pte: altered"):
            open_engine(copy, 1, name="torch-int4:cpu")

    def test_no_device(self, reach, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(EngineError, match=r"finds no CUDA device; take torch-int4:cpu, or"):
            open_engine(reach, 1, name="torch-int4:cuda")
        with pytest.raises(EngineError, match=r"finds no Apple GPU; take torch-int4:cpu"):
            open_engine(reach, 1, name="torch-int4:mps")
        with pytest.raises(EngineError, match=r"'torch-int4:gpu' is unknown; take torch-int4:cpu,"):
            open_engine(reach, 1, name="torch-int4:gpu")
        monkeypatch.setattr(torch_int4.importlib.util, "find_spec", lambda name: None)
        assert torch_int4.unavailable() == "torch is not installed; pip install torch"

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"version": 3}, r"is of version 3, this seedtune runs 2; export the bundle again"),
            ({"nodes": [["a", "aten.from_file.default", ["/x"]]]}, "names the operator 'aten.from"),
            ({"nodes": [["a", "aten.copy_.default", []]]}, "names the operator 'aten.copy_.defau"),
            ({"nodes": [["a", "os.system.default", ["x"]]]}, "names the operator 'os.system.defa"),
            ({"nodes": [["a", "odd", []]]}, "names the operator 'odd', which no export uses"),
            ({"first": ["size.mul", ["x", 9]]}, "sizes are integers"),
            ({"first": ["size.mul", [1 << 60, 9]]}, "a size of 64 bits"),
            ({"first": ["size.div", [1, 0]]}, "does not make sense"),
            ({"first": ["getitem", ["text", 0]]}, "getitem takes one of several tensors"),
            ({"nodes": [["tokens", "size.mul", [1, 1]]]}, "'tokens' is given twice, or no name"),
            (
                {"first": ["aten.arange.default", [1 << 40], {"device": {"device": None}}]},
                "a takes 8796093022208 bytes for one row of text",
            ),
            ({"nodes": [["a", "size.mul", [{"value": "b"}, 2]]]}, "a takes b, which nothing gives"),
            ({"nodes": [["a", "size.mul", [{"code": "b"}, 2]]]}, "argument of kind 'code'"),
            ({"outputs": [["nothing", "float32", []]]}, "an output is given by nothing"),
            ({"prefix": [None, 2, None, 9]}, "it takes prefix_3 of shape .None, 2, None, 9"),
            ({"prefix": [None, 2, 4, 8]}, "it takes prefix_3 of shape .None, 2, 4, 8"),
            ({"prefix": [None, 2]}, "it takes prefix_3 as 'float32' .None, 2"),
            (
                {"inputs": []},
                "it takes other inputs than tokens, positions, cand",
            ),
            ({"tensors": {"tokens": ["uint8", [1], "program.pte", 0]}}, "is named as an input is"),
            ({"tensors": {"t": ["uint8", [-1], "program.pte", 0]}}, r"t has the shape \[-1\]"),
            ({"tensors": {"t": ["nn", [1], "program.pte", 0]}}, "does not make sense: 'nn'"),
            ({"tensors": {"t": ["uint8", [10**9], "program.pte", 0]}}, "t lies outside program.pt"),
            ({"tensors": {"t": ["uint8", [1], "program.pte", -1]}}, "t lies outside program.pte"),
            ({"tensors": {"t": ["text", [1], "program.pte", 0]}}, "does not make sense"),
            ({"tensors": 3}, "does not make sense: field tensors has the wrong type"),
        ],
    )
    def test_a_program_that_makes_no_sense(self, reach, changes, told):
        with pytest.raises(EngineError, match=told) as error:
            program(reach, **changes)
        assert str(error.value).startswith("p.json: ") and "\n" not in str(error.value)

    def test_terms_of_other_sizes_or_results(self, reach):
        content = json.loads((reach.path / "program.json").read_bytes())
        for changes, told in (
            ({1: ["term_1", "float32", [64, 9]]}, r"it takes term_1 of shape .64, 9"),
            ({2: ["term_2", "float32", [None, 8]]}, r"it takes term_2 of shape"),
            ({0: ["term_3", "float32", [64, 8]]}, "it takes other inputs than tokens, .* term_0,"),
        ):
            inputs = [*content["inputs"]]
            first = [each[0] for each in inputs].index("term_0")
            for number, each in changes.items():
                inputs[first + number] = each
            with pytest.raises(EngineError, match=told):
                program(reach, inputs=inputs)
        logp, hidden, sizes, middle, *own = content["outputs"]
        for odd in ([middle, sizes], [sizes, sizes], [middle, middle]):
            with pytest.raises(EngineError, match="other states of blocks than terms are learned"):
                program(reach, outputs=[logp, hidden, *odd, *own])
        with pytest.raises(EngineError, match="or there are not 8"):
            program(reach, outputs=[logp, hidden, sizes, *own])

    def test_nothing_is_changed_that_something_else_reads(self, reach):
        """A weight is mapped from a file that must not be written: the process would end."""
        nodes = json.loads((reach.path / "program.json").read_bytes())["nodes"]
        place = next(n for n, each in enumerate(nodes) if each[1] == "seedtune.add_product")
        name, _, (changed, *product) = nodes[place]
        weight = next(
            argument
            for each in nodes
            for argument in each[2]
            if isinstance(argument, dict) and str(argument.get("value")).startswith("p_")
        )
        for other in (weight, {"value": "tokens"}, 3):
            odd = [*nodes[:place], [name, "seedtune.add_product", [other, *product]]]
            with pytest.raises(EngineError, match=f"{name} would change what it must not"):
                program(reach, nodes=odd + nodes[place + 1 :])
        read = ["again", "aten.neg.default", [changed]]
        with pytest.raises(EngineError, match=f"{name} would change what others read"):
            program(reach, nodes=[*nodes[: place + 1], read, *nodes[place + 1 :]])

    def test_weights_that_exceed_the_room_are_refused_before_they_are_loaded(self, reach):
        read = program(reach)
        need = read.weight_bytes + read.workspace_bytes
        assert 60_000 < read.weight_bytes < 120_000 and read.workspace_bytes == 4 * 300 * 32
        described = reach.program("torch")
        assert described is not None
        own, *others = described.files
        files = {name: reach.path / name for name in others}
        data = (reach.path / own).read_bytes()
        takes = reach.prefix_cache, reach.terms_shapes
        TorchProgram(data, files, CPU, torch.float32, Path("p.json"), need, *takes)
        with pytest.raises(EngineError, match=r"exceed .* on the GPU; raise the memory limit"):
            TorchProgram(data, files, CPU, torch.float32, Path("p.json"), need - 1, *takes)


class TestValues:
    def test_each_goes_as_soon_as_nothing_needs_it(self, reach):
        read = program(reach)
        named = {each.name for each in read._nodes}
        freed = [name for node in read._nodes for name in node.last]
        assert len(freed) == len(set(freed))
        assert named | {*read._takes} == {*freed, *read._outputs}

    def test_pages_of_weights_are_given_back_and_come_back(self, reach, monkeypatch):
        monkeypatch.setattr(torch_weights, "_LARGE", 1)
        read = program(reach)
        assert {*read._weights._pages} == {*read._weights}
        inputs = with_no_prefix(reach)
        wanted = program(reach).run(inputs)
        for _ in range(2):
            for found, own in zip(read.run(inputs), wanted, strict=True):
                assert torch.equal(found, own)


@pytest.mark.gpu
@on_gpu
class TestGpu:
    def test_parity_with_the_cpu(self, reach):
        asked = request(reach, **SOME)
        with open_engine(reach, 1, name="torch-int4:cpu") as engine:
            wanted = engine.score(*asked).logp
        for device, apart in (("cuda-float32", 1e-4), ("cuda", 5e-3), ("cuda-bf16", 5e-2)):
            with open_engine(reach, name=f"torch-int4:{device}") as engine:
                found = engine.score(*asked).logp
                now = engine.memory()
            assert np.abs(found - wanted).max() < apart
            assert now is not None and min(now) > 0

    def test_the_allocator_keeps_to_the_limit(self, reach):
        with pytest.raises(EngineError, match="exceed the 0 MB that there are on the GPU"):
            open_engine(reach, name="torch-int4:cuda", memory_limit=10_000)
        with open_engine(reach, name="torch-int4:cuda", memory_limit=8 * 10**9) as engine:
            engine.score(*request(reach, **SOME))
            assert torch.cuda.max_memory_reserved() < 8 * 10**9
            total = torch.cuda.get_device_properties(0).total_memory
            if total > 9 * 10**9:
                with pytest.raises(torch.OutOfMemoryError):
                    torch.empty(9 * 10**9, dtype=torch.uint8, device="cuda")
        torch.cuda.set_per_process_memory_fraction(1.0)

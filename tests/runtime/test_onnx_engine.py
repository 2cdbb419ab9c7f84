"""The ONNX engine: one line for all that can be wrong, no torch, and the loop from end to end."""

import hashlib
import json
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import bad, call, good, write_rows
from exported_bundle import request
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.bundle.manifest import manifest_digest
from seedtune.runtime.engines import onnxruntime as module
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.contract import EngineUnavailable
from seedtune.runtime.engines.onnx_files import tensor_files
from seedtune.runtime.errors import BundleError, EngineError
from tiny_bundle import TASK

MOST = {"rows": 8, "length": 32, "scored": 48, "choices": 4, "probes": 2}
SOME = {"rows": 3, "length": 20, "scored": 9, "choices": 3, "probes": 2}


@pytest.fixture
def copy(reach, tmp_path):
    shutil.copytree(reach.path, tmp_path / "b")
    return open_bundle(tmp_path / "b")


class TestScores:
    @pytest.mark.parametrize("name", ["onnxruntime", "torch-int4:cpu"])
    def test_small_perturbations_are_no_noise(self, reach, name):
        """int8 activations round them into steps of 1e-2; here the loss follows its slope."""
        batch, values = request(reach, **SOME)
        direction = np.sign(values[1] - values[0])
        slopes = []
        with open_engine(reach, 1, name=name) as engine:
            for eps in (1e-2, 1e-3):
                rows = np.stack([values[0] + eps * direction, values[0] - eps * direction])
                up, down = engine.score(batch, rows.astype(np.float32)).logp.mean(axis=(1, 2))
                slopes.append((up - down) / (2 * eps))
        assert abs(slopes[0]) > 0.1
        assert slopes[1] == pytest.approx(slopes[0], rel=0.02)

    @pytest.mark.parametrize("size", [2, 1 << 24])
    def test_a_result_of_another_size_takes_no_memory(self, copy, size):
        """A program of 200 kB may ask for any size; 2 GB were taken before it was looked at."""
        model = onnx.load_from_string((copy.path / "program.onnx").read_bytes())
        last = next(node for node in model.graph.node if "logp" in node.output)
        last.output[list(last.output).index("logp")] = "before"
        repeats = onnx.helper.make_tensor("repeats", 7, [3], [1, 1, size])
        model.graph.initializer.append(repeats)
        model.graph.node.append(onnx.helper.make_node("Tile", ["before", "repeats"], ["logp"]))
        with_program(copy, model.SerializeToString())
        batch, values = request(copy, **SOME)
        with open_engine(open_bundle(copy.path), 1, name="onnxruntime") as engine:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(EngineError, match=r"program\.onnx: the program failed: .*Tile"):
                engine.score(batch, values)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        assert grown < 200 << 10

    def test_a_size_beyond_use_is_refused_before_the_library_computes_with_it(
        self, copy, monkeypatch
    ):
        model = onnx.load_from_string((copy.path / "program.onnx").read_bytes())
        values = next(each for each in model.graph.input if each.name == "values")
        values.type.tensor_type.shape.dim[1].dim_value = 1 << 31
        with_program(copy, model.SerializeToString())
        monkeypatch.setattr(onnxruntime, "InferenceSession", never)
        with pytest.raises(EngineError, match=r"program\.onnx: declares a size of 2147483648"):
            open_engine(open_bundle(copy.path), 1, name="onnxruntime")


def never(*arguments, **more):
    raise AssertionError("the library was asked")


def with_program(bundle, program):
    """Put another ONNX program into a bundle, under a manifest that fits."""
    (bundle.path / "program.onnx").write_bytes(program)
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    part = {"sha256": hashlib.sha256(program).hexdigest(), "bytes": len(program)}
    manifest["parts"]["program.onnx"] = part
    manifest["sha256"] = manifest_digest(manifest)
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))


def naming(program, place, wanted):
    """``program`` with a tensor in an odd ``place`` that lies in the file ``wanted``."""
    model = onnx.load_from_string(program)
    tensor = onnx.TensorProto(name="odd", data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": wanted, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    nodes = model.graph.node
    if place == "weights":
        tensor = next(each for each in model.graph.initializer if each.external_data)
        next(e for e in tensor.external_data if e.key == "location").value = wanted
    elif place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "sparse":
        model.graph.sparse_initializer.add(values=tensor)
    elif place == "attribute":
        nodes.append(onnx.helper.make_node("Constant", [], ["odd"], value=tensor))
    elif place == "attributes":
        nodes.add(op_type="Odd").attribute.add(name="odd", tensors=[tensor], type=9)
    elif place == "branch":
        branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
        nodes.append(onnx.helper.make_node("If", [], [], then_branch=branch, else_branch=branch))
    elif place == "function":
        inside = [onnx.helper.make_node("Constant", [], ["odd"], value=tensor)]
        imports = [onnx.helper.make_opsetid("", 21)]
        function = onnx.helper.make_function("odd", "Odd", [], ["odd"], inside, imports)
        model.functions.append(function)
    else:
        model.training_info.add().algorithm.initializer.append(tensor)
    return model.SerializeToString()


PLACES = (
    "weights", "initializer", "sparse", "attribute", "attributes", "branch", "function", "training",
)  # fmt: skip


class TestFiles:
    """A program may take its tensors from those of the bundle that it was checked with."""

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize(
        "odd", ["stray.bin", "../x", "/etc/passwd", "./weights.safetensors", "*/_ORT_MEM_ADDR_/*"]
    )
    def test_another_file_is_refused_before_the_library_sees_it(
        self, reach, monkeypatch, place, odd
    ):
        monkeypatch.setattr(onnxruntime, "InferenceSession", never)
        program = naming((reach.path / "program.onnx").read_bytes(), place, odd)
        files = ["weights.safetensors", "program.pte"]
        shown = reach.path / "program.onnx"
        with pytest.raises(EngineError, match=r"which is none of the bundle's files for") as told:
            module.OnnxEngine(program, files, shown, reach.bounds, 1)
        assert repr(odd) in str(told.value) and "\n" not in str(told.value)

    def test_what_the_manifest_does_not_list_changes_no_answer(self, copy):
        """Beside a program, by its maker's hash, lay a file that anyone may change."""
        data = naming((copy.path / "program.onnx").read_bytes(), "weights", "stray.bin")
        with_program(copy, data)
        (copy.path / "stray.bin").write_bytes(bytes(1 << 20))
        with pytest.raises(EngineError, match=r"program.onnx: takes weights from 'stray.bin', wh"):
            open_engine(open_bundle(copy.path), 1, name="onnxruntime")

    def test_a_key_that_stands_there_twice(self, reach):
        """The last one counts in protobuf; another reader may take the first."""
        program = (reach.path / "program.onnx").read_bytes()
        good = onnx.StringStringEntryProto(key="location", value="program.pte").SerializeToString()
        for odd in (
            good + b"\x12\x02xx",
            b"\x12\x02xx" + good,
            b"\x0a\x01k" + good + b"\x12\x02xx",
        ):
            tensor = b"\x6a" + bytes([len(odd)]) + odd
            graph = b"\x2a" + bytes([len(tensor)]) + tensor
            more = program + b"\x3a" + bytes([len(graph)]) + graph  # one graph in two parts
            assert tensor_files(more) - tensor_files(program) == {"xx"}

    def test_what_is_no_message(self):
        deep = b""
        for _ in range(30):
            for tag in (0x32, 0x2A, 0x0A):  # a branch of a node of a graph
                size = len(deep)
                deep = bytes([tag, size & 127 | 128, size >> 7]) + deep
        for data, told in (
            (b"\x3a\x7f", "a field ends behind its message"),
            (b"\x80" * 11, "a number without an end"),
            (b"\x3a" + bytes([len(deep) & 127 | 128, len(deep) >> 7]) + deep, "more than 64 messa"),
        ):
            with pytest.raises(ValueError, match=told):
                tensor_files(data)


class TestOpening:
    @pytest.mark.parametrize("file", ["program.onnx", "program.pte", "weights.safetensors"])
    def test_a_file_that_is_cut_or_altered(self, copy, file):
        path = copy.path / file
        data = path.read_bytes()
        path.write_bytes(data[:-100])
        with pytest.raises(BundleError, match=rf"{file}: has .* truncated; copy the bundle again"):
            open_engine(copy, 1, name="onnxruntime")
        path.write_bytes(data[:-100] + bytes(100))
        with pytest.raises(BundleError, match=rf"{file}: altered"):
            open_engine(copy, 1, name="onnxruntime")
        with pytest.raises(BundleError, match=rf"{file}: altered"):
            open_bundle(copy.path)

    def test_a_file_that_is_swapped_while_it_is_opened(self, copy, monkeypatch):
        real = module.OnnxEngine
        weights = copy.path / "weights.safetensors"

        def swapped(*arguments):
            data = weights.read_bytes()
            weights.unlink()
            weights.write_bytes(data[:-9] + bytes(9))
            return real(*arguments)

        monkeypatch.setattr(module, "OnnxEngine", swapped)
        with pytest.raises(BundleError, match=r"weights.safetensors: altered"):
            open_engine(copy, 1, name="onnxruntime")

    def test_weights_behind_a_link(self, reach, tmp_path):
        """As a hub's cache lays files out; onnxruntime would say something about its security."""
        (tmp_path / "b").mkdir()
        for file in reach.path.iterdir():
            (tmp_path / "b" / file.name).symlink_to(file)
        linked = open_bundle(tmp_path / "b")
        with pytest.raises(EngineError, match=r"program.pte: is a link to .*; copy the bundle"):
            open_engine(linked, 1, name="onnxruntime")
        (tmp_path / "whole").symlink_to(reach.path)  # the folder itself may be one
        with open_engine(open_bundle(tmp_path / "whole"), 1, name="onnxruntime") as engine:
            assert engine.entries == reach.K

    @staticmethod
    def files(bundle):
        described = bundle.program("onnx")
        assert described is not None
        return list(described.files[1:]), bundle.path / "odd.onnx"

    @pytest.mark.parametrize("name", [b"hidden", b"MatMul"])
    def test_a_name_that_is_no_utf_8(self, copy, name, capfd):
        """The library's own second try told of the first on stdout, beside a command's JSON."""
        program = (copy.path / "program.onnx").read_bytes().replace(name, b"\xe2" + name[1:])
        opened = self.files(copy)
        with pytest.raises(EngineError, match=r"odd.onnx: onnxruntime cannot open it: .*utf-8"):
            module.OnnxEngine(program, *opened, copy.bounds, 1)
        assert capfd.readouterr().out == ""

    @pytest.mark.parametrize("size", ["x", 1 << 40, 0])
    def test_sizes_that_are_none(self, copy, size):
        model = onnx.load_from_string((copy.path / "program.onnx").read_bytes())
        adapter = next(each for each in model.graph.input if each.name == "adapter")
        for axis in adapter.type.tensor_type.shape.dim:
            if isinstance(size, str):
                axis.dim_param = size
            else:
                axis.dim_value = size
        program, opened = model.SerializeToString(), self.files(copy)
        with pytest.raises(EngineError, match=r"odd.onnx: (takes or ret|.*cannot open)"):
            module.OnnxEngine(program, *opened, copy.bounds, 1, cache=copy.prefix_cache)

    @pytest.mark.parametrize("name", ["inside_1", "inside_0", "term_0"])
    def test_terms_of_other_names(self, copy, name):
        other = name[:-1] + "9"
        program = (copy.path / "program.onnx").read_bytes().replace(name.encode(), other.encode())
        opened = self.files(copy)
        with pytest.raises(EngineError, match=rf"odd.onnx: (takes|returns) .*{other}.*, not "):
            module.OnnxEngine(program, *opened, copy.bounds, 1, cache=copy.prefix_cache)

    @pytest.mark.parametrize(
        ("name", "axis", "size", "told"),
        [
            (
                "prefix_0",
                1,
                3,
                r"odd.onnx: takes prefix_0 of shape .*, the bundle says 2 heads of 8",
            ),
            ("prefix_1", 3, 9, r"odd.onnx: (takes prefix_1 of shape|.*cannot open)"),
            ("prefix_1", None, 0, r"odd.onnx: (takes tokens, .*, not tokens, |.*cannot open)"),
            ("kept", None, 0, r"odd.onnx: (takes tokens, .*, not tokens, |.*cannot open)"),
            ("term_1", None, 0, r"odd.onnx: (takes tokens, .*, not tokens, |.*cannot open)"),
            ("term_2", 1, 0, r"odd.onnx: (takes or returns no fixed sizes|.*cannot open)"),
        ],
    )
    def test_a_prefix_or_terms_of_other_sizes(self, copy, name, axis, size, told):
        model = onnx.load_from_string((copy.path / "program.onnx").read_bytes())
        changed = next(each for each in model.graph.input if each.name == name)
        if axis is None:
            changed.type.tensor_type.shape.dim.add(dim_value=1)
        else:
            changed.type.tensor_type.shape.dim[axis].dim_value = size
        program, opened = model.SerializeToString(), self.files(copy)
        with pytest.raises(EngineError, match=told) as error:
            module.OnnxEngine(program, *opened, copy.bounds, 1, cache=copy.prefix_cache)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1200

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            (b"no protobuf", r"is no ONNX program \(a field of kind 6\); export it again"),
            (b"", "onnxruntime cannot open it: "),
            (b"\x08\x0a", "onnxruntime cannot open it: "),
            (b"\x08\x00\x00\x00ORTM" + bytes(64), r"is no ONNX program|cannot open it"),
        ],
    )
    def test_a_file_that_is_no_program(self, copy, data, told):
        with pytest.raises(EngineError, match=rf"odd.onnx: {told}") as error:
            module.OnnxEngine(data, [], copy.path / "odd.onnx", copy.bounds, 1)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "said",
        [
            "Fatal error: com.microsoft:MatMulNBits(-1) is not a registered function/op",
            "Unsupported model IR version: 10, max supported IR version: 9",
            "ONNX Runtime only guarantees support for models stamped with official released onnx "
            "opset versions. Opset 21 is under development and support for this is limited.",
        ],
    )
    def test_an_onnxruntime_too_old_for_an_operator(self, reach, monkeypatch, said):
        def refuse(*arguments, **more):
            raise RuntimeError(said)

        monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
        with pytest.raises(EngineError, match=r"is too old for it .*; pip install --upgrade onnx"):
            open_engine(reach, 1, name="onnxruntime")

    def test_an_old_or_missing_onnxruntime(self, reach, monkeypatch):
        monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
        with pytest.raises(EngineError, match=r"onnxruntime 1.9.0 is too old; pip install 'onnx"):
            open_engine(reach, 1, name="onnxruntime")
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
        told = module.unavailable()
        assert told == "onnxruntime is not installed; pip install 'onnxruntime>=1.24'"
        with pytest.raises(EngineUnavailable, match="not installed"):
            module.open(reach, reach.programs[1], 1, None)

    def test_a_provider_that_is_not_there(self, reach, tmp_path):
        with pytest.raises(EngineError, match=r"has no CUDAExecutionProvider here, only .*CPU"):
            open_engine(reach, 1, name="onnxruntime:cuda")
        (tmp_path / "rows.jsonl").write_text('{"text": "x", "label": 0}\n')
        (tmp_path / "task.json").write_text(json.dumps(TASK))
        told = bad(6, "evaluate", reach.path, "--data", tmp_path / "rows.jsonl",
                   "--task", tmp_path / "task.json", "--engine", "onnxruntime:tpu")  # fmt: skip
        assert told.startswith("engine 'onnxruntime:tpu' is unknown; take onnxruntime:cpu, onnxr")
        with pytest.raises(EngineError, match="take none but executorch-native"):
            open_engine(reach, 1, name="executorch-native:cpu")

    def test_a_provider_that_does_not_start(self, reach, monkeypatch):
        """onnxruntime then goes on with the CPU, and only logs it."""
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"]
        )
        fallen = SimpleNamespace(
            get_providers=lambda: ["CPUExecutionProvider"], get_inputs=list, get_outputs=list
        )
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **b: fallen)
        with pytest.raises(EngineError, match="could not start CUDAExecutionProvider"):
            open_engine(reach, 1, name="onnxruntime:cuda")


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    return write_rows(tmp_path / "rows.jsonl", lengths=1)


@pytest.mark.parametrize("engine", ["onnxruntime", "torch-int4:cpu"])
def test_a_run_of_one_engine_replays_and_goes_on_with_another(reach, rows, tmp_path, engine):
    run = tmp_path / "run"
    task = ("--task", tmp_path / "task.json", "--train", rows, "--data", rows, "--threads", 1)
    how = ("--estimator", "two-point", "--lr", "1e-4", "--eps", "1e-3", "--steps", 6)
    good("tune", reach.path, run, *task, *how, "--engine", engine)
    # Runs no program, and holds the values against the hash that the run wrote at its end.
    assert good("journal", "verify", run, reach.path)["steps"] == 6
    shown = good("journal", "show", run)
    assert shown["program"] == open_engine(reach, 1, name=engine).program
    assert shown["notes"] == []
    other = ("--engine", "executorch-binding", "--steps", 8)
    more = call("tune", reach.path, run, *task, *other, "--json")
    assert more.exit_code == 0 and json.loads(more.stdout)["steps"] == 8
    assert "the run goes on with the program executorch (int8 per token)" in more.stderr
    shown = good("journal", "show", run)
    assert shown["program"] == "executorch (int8 per token)"
    assert shown["notes"] == [[6, "program: executorch (int8 per token)"]]
    good("tune", reach.path, run, *task, *other[:2], "--steps", 9)
    assert len(good("journal", "show", run)["notes"]) == 1
    assert good("journal", "verify", run, reach.path)["steps"] == 9

"""Kinds of cases of ``fuzz`` that run: ONNX and torch programs of the tiny model, whose bundle is
made to fit."""

import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from exported_bundle import request
from fuzz_odd import EQUAL, SOUND, Case, damage, own_file
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.bundle.manifest import manifest_digest
from seedtune.runtime.engines import open_engine

_SIZES = {"rows": 3, "length": 20, "scored": 9, "choices": 3, "probes": 2}
_ODD: list[Any] = [
    None, True, -1, 0, 1, 7, 31, 1 << 20, 1 << 31, 1 << 40, 1 << 62, 1e300, "", "x", [], [[]], {},
    [1, 2], [1 << 40], {"value": "tokens"}, {"value": "values"}, {"dtype": "int8"}, {"device": 1},
    {"float": "nan"}, {"float": "inf"}, {"memory_format": "channels_last"}, "aten.repeat.default",
    "aten.ones.default", "aten.arange.default", "aten.expand.default", "aten.view.default",
    "seedtune.add_product", "seedtune.int4_linear.default", "aten.from_file.default", "size.mul",
]  # fmt: skip
_PLACES = [
    "../x",
    "/etc/passwd",
    "*/_ORT_MEM_ADDR_/*",
    "",
    "weights.safetensors",
    "x",
    "manifest.json",
]
_NUMBERS = [0, -1, 1, 2, 7, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)]


def export_programs(folder: Path) -> Path:
    """The tiny model with the programs, exported in a process of its own: this one is to fork, and
    torch's threads would not survive that."""
    code = "import sys; from pathlib import Path; from exported_bundle import export_tiny_bundle; "
    code += "export_tiny_bundle(Path(sys.argv[1]), ('onnx', 'torch'))"
    here = Path(__file__).parent
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, cwd=here, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(here)},
    )  # fmt: skip
    return folder / "bundle"


def program_kinds(folder: Path, bundle: Bundle) -> dict[str, Case]:
    """The kinds of cases; ``folder`` is for their files."""
    own, path = own_file(folder), bundle.path
    onnx_program, torch_program = (
        (path / n).read_bytes() for n in ("program.onnx", "program.json")
    )
    batch, values = request(bundle, **_SIZES)

    @cache
    def copied(process: int) -> Path:
        return Path(shutil.copytree(path, own("bundle")))

    def scored(name: str, data: bytes, engine: str) -> str:
        place = copied(os.getpid())
        (place / name).write_bytes(data)
        manifest = json.loads((path / "manifest.json").read_bytes())
        part = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest["parts"][name] = part
        manifest["sha256"] = manifest_digest(manifest)
        (place / "manifest.json").write_text(json.dumps(manifest))
        with open_engine(open_bundle(place), 1, name=engine) as opened:
            found = opened.score(batch, values)
        right = found.logp.dtype == np.float32 and found.logp.shape == (2, 9, 3)
        return SOUND if right else "different"

    def onnx_case(rng: random.Random) -> tuple[str, Callable[[], str]]:
        if rng.random() < 0.3:
            what, data = damage(onnx_program, rng)
        else:
            model, what = onnx.load_from_string(onnx_program), ""
            for _ in range(rng.choice([1, 1, 2])):
                what += _odd_model(model, rng) + "; "
            data = model.SerializeToString()
        return what, lambda: _equal(
            data == onnx_program, scored("program.onnx", data, "onnxruntime")
        )

    def torch_case(rng: random.Random) -> tuple[str, Callable[[], str]]:
        if rng.random() < 0.2:
            what, data = damage(torch_program, rng)
        else:
            content, what = json.loads(torch_program), ""
            for _ in range(rng.choice([1, 1, 2])):
                what += _odd_place(content, rng) + "; "
            data = json.dumps(content).encode()
        return what, lambda: _equal(
            data == torch_program, scored("program.json", data, "torch-int4:cpu")
        )

    return {"onnx program": onnx_case, "torch program": torch_case}


def _equal(same: bool, result: str) -> str:
    return EQUAL if same and result == SOUND else result


def _odd_place(content: Any, rng: random.Random) -> str:
    """Change one value of a torch program's JSON, wherever it stands."""
    where, path = content, ""
    while True:
        keys = [*where] if isinstance(where, dict) else [*range(len(where))]
        if not keys:
            return f"{path} is empty"
        key = rng.choice(keys)
        if not path and "nodes" in keys and rng.random() < 0.7:
            key = "nodes"
        path += f"/{key}"
        if not isinstance(where[key], (dict, list)) or rng.random() < 0.1:
            break
        where = where[key]
    way = rng.random()
    if way < 0.1:
        del where[key]
        return f"{path} gone"
    if way < 0.2 and isinstance(where, list):
        where.insert(rng.randrange(len(where)), copy.deepcopy(where[key]))
        return f"{path} twice"
    where[key] = copy.deepcopy(rng.choice(_ODD))
    return f"{path}={where[key]!r}"


def _odd_model(model: Any, rng: random.Random) -> str:
    """Change one field of an ONNX program."""
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    way = rng.choice(["node", "input", "operator", "attribute", "axis", "type", "place", "content",
                      "more", "value", "version", "again"])  # fmt: skip
    if way == "node":
        graph.node.remove(node)
    elif way == "input" and node.input:
        other = rng.choice(graph.node)
        name = rng.choice([*other.input, *other.output, "x", "", "tokens", "values", tensor.name])
        node.input[rng.randrange(len(node.input))] = name
    elif way == "operator":
        node.op_type = rng.choice(["Expand", "Tile", "Range", "ConstantOfShape", "Reshape",
        "Gather",
                                   "Loop", "If", "Scan", "Slice", "Pad", "X", "Neg", "MatMul",
                                   "Cast",
                                   "OneHot", "Resize", "TopK", "RandomNormal"])  # fmt: skip
    elif way == "attribute" and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i = rng.choice(_NUMBERS)
        attribute.type = rng.choice([attribute.type, *range(15)])
        attribute.ints.extend(rng.choices(_NUMBERS, k=rng.randrange(3)))
    elif way == "axis":
        tensor.dims.insert(rng.randrange(3), rng.choice(_NUMBERS))
    elif way == "type":
        tensor.data_type = rng.randrange(25)
    elif way == "place":
        odd = rng.choice([t for t in graph.initializer if t.external_data])
        pair = rng.choice(odd.external_data)
        pair.key = rng.choice([pair.key] * 5 + ["location", "offset", "length", "checksum", "x"])
        pair.value = rng.choice([*_PLACES, *map(str, _NUMBERS), "1e9", "x"])
        return f"{odd.name} {pair.key}={pair.value}"
    elif way == "content":
        plain = [t for t in graph.initializer if t.raw_data]
        odd = rng.choice(plain)
        data = bytearray(odd.raw_data)
        at = rng.randrange(0, len(data), 8)
        data[at : at + 8] = rng.choice(_NUMBERS).to_bytes(8, "little", signed=True)
        odd.raw_data = bytes(data)
        return f"content of {odd.name} ({odd.data_type})"
    elif way == "more":
        _add_node(model, rng)
    elif way == "value":
        value = rng.choice([*graph.input, *graph.output])
        value.name = rng.choice([value.name] * 5 + ["tokens", "logp", "x"])
        kind = value.type.tensor_type
        if kind.shape.dim and rng.random() < 0.7:
            size = rng.choice(kind.shape.dim)
            size.dim_value = rng.choice(_NUMBERS)
            if rng.random() < 0.3:
                size.dim_param = "x"
            return f"{value.name} of size {size.dim_value} {size.dim_param}"
        kind.elem_type = rng.randrange(17)
        return f"{value.name} of type {value.type.tensor_type.elem_type}"
    elif way == "version":
        model.opset_import[0].version = rng.choice(_NUMBERS)
        model.ir_version = rng.choice([model.ir_version, 1, 3, 99, (1 << 63) - 1])
    else:
        graph.node.insert(rng.randrange(len(graph.node)), copy.deepcopy(node))
    return f"{way} {node.op_type} {node.name} {tensor.name}"


def _add_node(model: Any, rng: random.Random) -> None:
    """A node that nothing needs, with sizes beyond use; it is the first output's last step."""
    size = onnx.helper.make_tensor("odd", 7, [2], rng.choices(_NUMBERS, k=2))
    model.graph.initializer.append(size)
    last = next(node for node in model.graph.node if "logp" in node.output)
    last.output[list(last.output).index("logp")] = "logp_before"
    kind = rng.choice(["Expand", "Tile", "Reshape"])
    model.graph.node.append(onnx.helper.make_node(kind, ["logp_before", "odd"], ["logp"]))

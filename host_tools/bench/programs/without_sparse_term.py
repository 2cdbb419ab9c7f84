"""A bundle whose ONNX or torch program lacks the sparse term: what its cost is measured against.

The program's own graph, with three changes: a product takes the whole input, not the one whose
sensitive columns are zero; nothing is added to what it gives; and what only fed the sum is gone.
The answers are wrong, the dense work is the same.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.bundle.manifest import MANIFEST, manifest_digest
from seedtune.runtime.engines import engine_module

FORMATS_TAKEN = ("onnx", "torch")
_KEEP = "columns_keep"


def without_sparse_term(bundle: Bundle, engine: str, folder: Path) -> Bundle:
    """``bundle`` with only the program that ``engine`` runs, written to ``folder``.

    Args:
        folder: where weights are linked to, not copied, if it is on the same file system.
    """
    program = bundle.program(engine_module(engine).FORMAT)
    assert program is not None and program.format in FORMATS_TAKEN, engine
    for name in {*bundle.manifest["parts"], MANIFEST}:
        try:
            os.link(bundle.path / name, folder / name)
        except OSError:
            shutil.copy(bundle.path / name, folder / name)
    file = folder / program.files[0]
    data = file.read_bytes()
    file.unlink()
    file.write_bytes({"onnx": _onnx, "torch": _torch}[program.format](data))
    _sign(folder, program.files[0])
    return open_bundle(folder)


def _onnx(data: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(data)
    nodes = model.graph.node
    by_output = {name: node for node in nodes for name in node.output}
    renamed: dict[str, str] = {}
    for node in nodes:
        before = [by_output.get(name) for name in node.input]
        kinds = [each.op_type if each is not None else "" for each in before]
        if node.op_type == "Add" and kinds == ["MatMulNBits", "MatMul"]:
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "MatMulNBits" and kinds[0] == "Mul":
            x, keep = before[0].input
            if keep.replace(".", "_").endswith(_KEEP):
                node.input[0] = x
    assert renamed, "the program has no sparse term"
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    left = _needed(
        [(list(node.output), list(node.input), node) for node in nodes],
        [output.name for output in model.graph.output],
    )
    del nodes[:]
    nodes.extend(left)
    used = {name for node in nodes for name in node.input}
    tensors = [each for each in model.graph.initializer if each.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    return bytes(model.SerializeToString())


def _torch(data: bytes) -> bytes:
    content = json.loads(data)
    renamed: dict[str, str] = {}
    masked = {
        name: args[0]
        for name, target, args, *_ in content["nodes"]
        if target == "aten.mul.Tensor" and str(args[1]).find(_KEEP) >= 0
    }
    for name, target, args, *_ in content["nodes"]:
        if target == "seedtune.add_product":
            renamed[name] = args[0]["value"]
        elif target == "seedtune.int4_linear.default":
            args[0] = masked.get(args[0]["value"], args[0])
    assert renamed, "the program has no sparse term"
    content["nodes"] = [
        [name, target, *(_renamed(each, renamed) for each in rest)]
        for name, target, *rest in content["nodes"]
    ]
    content["nodes"] = _needed(
        [([node[0]], _values(node[2:]), node) for node in content["nodes"]],
        [name for name, *_ in content["outputs"]],
    )
    used = {name for node in content["nodes"] for name in _values(node[2:])}
    content["tensors"] = {name: at for name, at in content["tensors"].items() if name in used}
    return json.dumps(content).encode()


def _needed(nodes: list[tuple[list[str], list[str], Any]], outputs: list[str]) -> list[Any]:
    """Of nodes (what they give, what they take, themselves), in order, those that count."""
    wanted, found = set(outputs), []
    for gives, takes, node in reversed(nodes):
        if wanted & set(gives):
            wanted |= set(takes)
            found.append(node)
    return found[::-1]


def _renamed(argument: Any, names: dict[str, str]) -> Any:
    if isinstance(argument, list):
        return [_renamed(each, names) for each in argument]
    if isinstance(argument, dict):
        if set(argument) == {"value"}:
            return {"value": names.get(argument["value"], argument["value"])}
        return {key: _renamed(each, names) for key, each in argument.items()}
    return argument


def _values(argument: Any) -> list[str]:
    if isinstance(argument, dict):
        if set(argument) == {"value"}:
            return [argument["value"]]
        argument = list(argument.values())
    if isinstance(argument, list):
        return [name for each in argument for name in _values(each)]
    return []


def _sign(folder: Path, name: str) -> None:
    """Let the manifest say what the changed file is."""
    import hashlib

    data = (folder / name).read_bytes()
    content = json.loads((folder / MANIFEST).read_bytes())
    content["parts"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    content["sha256"] = manifest_digest(content)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")

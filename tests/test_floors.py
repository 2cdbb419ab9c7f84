"""The layout: floors without circles, a light runtime, and estimators that none else names."""

import ast
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.settings import Settings, options_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "export", "host_tools")
NOT_ON_A_DEVICE = {
    *("torch", "executorch", "onnxruntime", "java"),
    *("transformers", "torchao", "accelerate", "gguf", "typer", "rich"),
    "huggingface_hub",
    *("seedtune.export", "seedtune.host_tools"),
}


def sources(*folders):
    """Files by the dotted name of their module, below ``seedtune``."""
    found = {}
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    assert found
    return found


def test_what_may_import_what(monkeypatch, capsys):
    """The contracts in ``pyproject.toml``."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # it puts the folder there
    status = lint_imports(no_cache=True, no_logo=True)
    for name in [*logging.root.manager.loggerDict]:  # its logging ends all others'
        logging.getLogger(name).disabled = False
    assert status == 0, capsys.readouterr().out


def test_importing_the_runtime_loads_no_engine_and_no_host_library():
    """All of runtime but the engine files, in a fresh interpreter."""
    modules = [
        f"seedtune.{name}"
        for name, file in sources("runtime").items()
        if file.parent.name != "engines" or file.name == "__init__.py"
    ]
    script = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, json.dumps(modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    loaded = json.loads(done.stdout)
    assert "seedtune.runtime.bundle" in loaded
    assert not [
        name
        for name in loaded
        if any(name == each or name.startswith(f"{each}.") for each in NOT_ON_A_DEVICE)
    ]


SETTINGS = {
    *options_of(Settings),
    *(name for spec in ESTIMATORS.values() for name in options_of(spec.options)),
}
"""A setting may be called as an estimator is; code may name the setting."""
NAMED = {
    *sources("runtime"),
    *sources("export"),
    *(name for name in sources("host_tools") if not name.startswith("host_tools.bench")),
} - {"host_tools.quickstart"}
NAMED = {name for name in NAMED if not name.startswith("runtime.estimators")}
"""Modules that must not know one estimator from another."""


def own_identifiers():
    """Modules and classes of the estimators."""
    found = set()
    for name, file in sources("runtime/estimators").items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assigned = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        if "SPEC" in assigned:
            found.add(name.rpartition(".")[2])
            found |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    return found


def names_of(tree, identifiers):
    """Lines that name an estimator, docstrings and help texts left out, and the name."""
    word = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, ESTIMATORS))})(?![\w-])")
    told = set()  # strings that are only read by people
    compared = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            told |= {id(node.value)}
        elif isinstance(node, ast.keyword) and node.arg == "help":
            told |= {id(part) for part in ast.walk(node.value)}
        elif isinstance(node, (ast.Compare, ast.match_case)):
            compared |= {id(part) for part in ast.walk(node)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in told or (node.value in SETTINGS and id(node) not in compared):
                continue
            if found := word.search(node.value):
                yield line, found[0]
            continue
        used: set[str] = set()
        if isinstance(node, ast.Name):
            used = {node.id}
        elif isinstance(node, ast.Attribute):
            used = {node.attr}
        elif isinstance(node, (ast.arg, ast.keyword)):
            used = {node.arg or ""}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            used = {node.name}
        elif isinstance(node, ast.ImportFrom):
            used = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            yield from ((line, name) for name in used & identifiers)  # no setting is imported
            continue
        elif isinstance(node, ast.Import):
            used = {part for alias in node.names for part in alias.name.split(".")}
        yield from ((line, name) for name in used & identifiers - SETTINGS)


def test_no_estimator_is_named_outside_its_folder():
    identifiers = own_identifiers()
    assert {"Readout", "readout", "TwoPoint", "two_point", "PerExample"} <= identifiers
    assert len(identifiers) == 3 * len(ESTIMATORS)
    found = [
        f"{name}:{line} names {which}"
        for name, file in sources(*PACKAGES).items()
        if name in NAMED
        for line, which in names_of(ast.parse(file.read_text(encoding="utf-8")), identifiers)
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "if estimator == 'per-example': pass",
        "if 'readout' in names: pass",
        "match name:\n    case 'text-head': pass",
        "raise ValueError(f'{x}: take two-point')",
        "usual = {'per-example': 1}",
        "from ..estimators.readout import MEMORY",
        "from ..estimators import readout",
        "import seedtune.runtime.estimators.two_point",
        "isinstance(estimator, Readout)",
        "module.PerExample()",
    ],
)
def test_the_rule_sees_a_name(code):
    """The check itself."""
    assert list(names_of(ast.parse(code), own_identifiers()))

"""The layout, by reading the sources: floors, no circles, and estimators that none else names."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.settings import Settings
from source_imports import PACKAGES, circle, imports, sources

FLOORS = (
    ("runtime", "model"),
    ("tuning",),
    ("journal",),
    ("estimators",),
    ("scoring", "writing"),
    ("engines",),
    ("tasks",),
    ("bundle",),
    ("settings", "schema", "errors", "files", "process_lock", "telemetry"),
)
"""Of ``runtime``, from the top down; each may import those below it."""
HEIGHT = {name: -number for number, floor in enumerate(FLOORS) for name in floor}


def folder(module: str) -> str:
    """``runtime.tuning`` of ``runtime.tuning.tuner``."""
    return ".".join(module.split(".")[:2])


def floor(module: str) -> str:
    """``tuning`` of ``runtime.tuning.tuner``; ``runtime`` is the package itself."""
    return module.split(".")[1] if "." in module else module


def test_every_module_of_the_runtime_has_a_floor() -> None:
    assert {floor(name) for name in sources("runtime")} == set(HEIGHT)


def test_nothing_in_the_runtime_imports_upwards() -> None:
    found = imports(sources("runtime"))
    assert len(found) > 100
    upwards = [
        f"{each.source}:{each.line} imports {each.target}"
        for each in found
        if HEIGHT[floor(each.target)] > HEIGHT[floor(each.source)]
    ]
    assert not upwards


def test_there_are_no_circles_among_modules() -> None:
    """Imports inside functions and for type checkers make circles too."""
    found = imports(sources(*PACKAGES))
    assert circle([(each.source, each.target) for each in found]) == []


@pytest.mark.parametrize("package", ["runtime", "export"])
def test_there_are_no_circles_among_folders(package: str) -> None:
    edges = {
        (folder(each.source), folder(each.target))
        for each in imports(sources(package))
        if folder(each.source) != folder(each.target)
    }
    assert len(edges) > 5 and circle(sorted(edges)) == []


def test_the_rule_sees_every_form_of_import(tmp_path: Path) -> None:
    """The check itself."""
    text = {
        "runtime/__init__.py": "",
        "runtime/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import b",
        "runtime/b.py": "def f():\n    from seedtune.runtime.sub import name",
        "runtime/sub/__init__.py": "from .c import name",
        "runtime/sub/c.py": "import seedtune.runtime.a\nfrom seedtune import runtime\nname = 1",
    }
    modules = {}
    for name, content in text.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        modules[name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = file
    edges = [(each.source, each.target) for each in imports(modules)]
    assert sorted(edges) == [
        ("runtime.a", "runtime.b"),
        ("runtime.b", "runtime.sub"),
        ("runtime.sub", "runtime.sub.c"),
        ("runtime.sub.c", "runtime"),
        ("runtime.sub.c", "runtime.a"),
    ]
    found = circle(edges)
    assert set(found) == {"runtime.a", "runtime.b", "runtime.sub", "runtime.sub.c"}
    assert found[0] == found[-1] and len(found) == 5
    assert circle(edges[1:]) == circle([]) == []


SETTINGS = {field.name for field in fields(Settings)}
"""A setting may be called as an estimator is; code may name the setting."""
NAMED = {
    *sources("runtime"),
    *sources("export"),
    *(name for name in sources("host_tools") if not name.startswith("host_tools.bench")),
} - {"host_tools.quickstart"}
NAMED = {name for name in NAMED if not name.startswith("runtime.estimators")}
"""Modules that must not know one estimator from another."""


def own_identifiers() -> set[str]:
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
        if "FACTS" in assigned:
            found.add(name.rpartition(".")[2])
            found |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    return found


def names_of(tree: ast.AST, identifiers: set[str]) -> Iterator[tuple[int, str]]:
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


def test_no_estimator_is_named_outside_its_folder() -> None:
    identifiers = own_identifiers()
    assert {"Readout", "readout", "TwoPoint", "two_point", "PerExample"} <= identifiers
    assert len(identifiers) == 2 * len(ESTIMATORS)
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
def test_the_rule_sees_a_name(code: str) -> None:
    """The check itself."""
    assert list(names_of(ast.parse(code), own_identifiers()))


@pytest.mark.parametrize(
    "code",
    [
        "'''About readout.'''",
        "x: int = 1\n'''As readout has it.'''",
        "typer.Option(help='Estimator: ' + 'readout or two-point')",
        "x = 'a two-pointed star'",
    ],
)
def test_the_rule_leaves_what_is_no_name_of_an_estimator(code: str) -> None:
    """The check itself."""
    assert not list(names_of(ast.parse(code), own_identifiers()))

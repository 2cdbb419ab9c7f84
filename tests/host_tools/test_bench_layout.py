"""The benchmarks' folder: a file at the top is a benchmark, folders hold what benchmarks use."""

import ast

import pytest
from command_line import good
from source_imports import ROOT, circle, imports, sources

BENCH = "host_tools.bench"
MODULES = sources("host_tools/bench")
FOLDERS = sorted(file.parent for file in (ROOT / "host_tools/bench").glob("*/__init__.py"))


def below(module: str) -> tuple[str, ...]:
    """``("people", "data")`` of ``host_tools.bench.people.data``."""
    return tuple(module.removeprefix(BENCH).lstrip(".").split("."))


def test_the_files_at_the_top_are_the_benchmarks() -> None:
    top = {below(name)[0]: file for name, file in MODULES.items() if len(below(name)) == 1}
    names = sorted(name for name in top if name and top[name].name != "__init__.py")
    assert good("bench", "list")["benchmarks"] == names and "journal" in names
    for name in names:
        tree = ast.parse(top[name].read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert f"bench_{name}" in defined, name


def test_folders_know_no_benchmark_and_make_no_circle() -> None:
    edges = set()
    for each in imports(MODULES):
        source, target = below(each.source), below(each.target)
        if len(source) == 2 and source[0] != target[0]:
            assert len(target) == 2, f"{each.source}:{each.line} imports {each.target}"
            edges.add((source[0], target[0]))
    assert len(edges) >= 5 and circle(sorted(edges)) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_says_what_is_inside(folder) -> None:
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree)
    assert said and len(tree.body) == 1 and "\n" not in said
    assert len(list(folder.glob("*.py"))) > 2

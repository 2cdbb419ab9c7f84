"""The benchmarks' folder: a file at the top is a benchmark, folders hold what benchmarks use."""

import ast
from pathlib import Path

from command_line import good

BENCH = Path(__file__).parents[2] / "host_tools/bench"


def test_the_files_at_the_top_are_the_benchmarks():
    names = sorted(file.stem for file in BENCH.glob("*.py") if file.stem != "__init__")
    assert good("bench", "list")["benchmarks"] == names and "quality" in names
    for name in names:
        tree = ast.parse((BENCH / f"{name}.py").read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert f"bench_{name}" in defined, name

"""Export has floors: no folder imports one above it, and so none imports in a circle."""

import ast
from pathlib import Path

import pytest

EXPORT = Path(__file__).parents[2] / "export"
FLOORS = [
    "quiet",
    "recipe",
    "model",
    "profile",
    "program",
    "quantise",
    "text",
    "lower",
    "export",
    "load_merged",
    "merge",
]
"""From the bottom up."""


def imported(file: Path) -> set[str]:
    """Folders and files of ``export`` that ``file`` imports, inside functions too."""
    inside = file.relative_to(EXPORT).parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == len(inside):
            found |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= (
                {node.module.split(".")[2]} if node.module.startswith("seedtune.export.") else set()
            )
    return found


@pytest.mark.parametrize(
    "file", sorted(EXPORT.rglob("*.py")), ids=lambda file: str(file.relative_to(EXPORT))
)
def test_nothing_imports_upwards(file: Path) -> None:
    if file.parent == EXPORT and file.stem == "__init__":
        return
    own = file.relative_to(EXPORT).parts[0].removesuffix(".py")
    above = FLOORS[FLOORS.index(own) + 1 :]
    assert not imported(file) & set(above)
    assert imported(file) <= set(FLOORS)


def test_the_check_sees_imports() -> None:
    assert {"lower", "model", "profile"} <= imported(EXPORT / "export.py")
    assert {"quiet", "model"} <= imported(EXPORT / "quantise" / "int4.py")

"""Which module of the project imports which, by reading the sources."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "export", "host_tools")


@dataclass(frozen=True)
class Import:
    """An import of a module of the project."""

    source: str
    """Dotted, below ``seedtune``: ``runtime.tuning.tuner``; a package is meant by its name."""
    target: str
    line: int


def sources(*folders: str) -> dict[str, Path]:
    """Files by the dotted name of their module."""
    found = {}
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    assert found
    return found


def imports(modules: dict[str, Path]) -> list[Import]:
    """All imports among ``modules``, those inside functions and for type checkers included.

    ``from a import b`` is an import of ``a.b`` where that is a module, else of ``a``.
    """
    found = []
    for name, file in modules.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for target in _targets(node, package, modules):
                if target != name:
                    found.append(Import(name, target, node.lineno))  # type: ignore[attr-defined]
    return found


def _targets(node: ast.AST, package: str, modules: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            name = alias.name.removeprefix("seedtune.")
            if alias.name.startswith("seedtune.") and name in modules:
                yield name
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        elif base == "seedtune":
            base = ""
        elif base.startswith("seedtune."):
            base = base.removeprefix("seedtune.")
        else:
            return
        for alias in node.names:
            inner = f"{base}.{alias.name}".lstrip(".")
            if inner in modules:
                yield inner
            elif base in modules:
                yield base


def circle(edges: list[tuple[str, str]]) -> list[str]:
    """The nodes of a circle, the first one repeated at its end; empty if there is none."""
    after: dict[str, set[str]] = {}
    for source, target in edges:
        after.setdefault(source, set()).add(target)
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(after.get(node, ())):
            if found := walk(target, [*path, node]):
                return found
        done.add(node)
        return []

    for node in sorted(after):
        if found := walk(node, []):
            return found
    return []

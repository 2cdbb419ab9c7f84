"""The device side stays small: what each package may import, by reading and by running."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE_LIBRARIES = {"torch", "executorch", "onnxruntime", "java"}
HOST_LIBRARIES = {"transformers", "torchao", "accelerate", "gguf", "typer", "rich", "matplotlib"}


def imports_of(file: Path, package: str) -> Iterator[str]:
    """Absolute names of all modules that ``file`` imports, those inside functions included.

    ``from a import b`` counts as ``a`` and ``a.b``, since ``b`` may be a module.
    """
    inside = [*package.split("."), *file.relative_to(ROOT).with_suffix("").parts[1:]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # From a package's __init__ the last part of ``inside`` is "__init__" itself.
                parent = inside[: len(inside) - node.level]
                base = ".".join([*parent, base] if base else parent)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("file", files("runtime"), ids=lambda f: str(f.relative_to(ROOT)))
def test_runtime_imports_only_what_a_device_has(file: Path) -> None:
    forbidden = {"seedtune.export", "seedtune.host_tools"} | HOST_LIBRARIES
    if file.parent != ROOT / "runtime" / "engines" or file.name == "__init__.py":
        forbidden |= ENGINE_LIBRARIES
    wrong = [name for name in imports_of(file, "seedtune.runtime") if within(name, forbidden)]
    assert not wrong


@pytest.mark.parametrize("file", files("export"), ids=lambda f: str(f.relative_to(ROOT)))
def test_export_does_not_import_host_tools(file: Path) -> None:
    imported = imports_of(file, "seedtune.export")
    assert not [name for name in imported if within(name, {"seedtune.host_tools"})]


def test_each_engine_library_has_one_file() -> None:
    """Torch may come along with ExecuTorch's Python binding; no library has two engines."""
    for library in ("executorch", "onnxruntime", "java"):
        users = [
            file.name
            for file in files("runtime")
            if any(within(name, {library}) for name in imports_of(file, "seedtune.runtime"))
        ]
        assert len(users) <= 1, (library, users)


def test_importing_the_runtime_loads_no_engine_and_no_host_library() -> None:
    """All of runtime but the engine files, in a fresh interpreter."""
    modules = [
        ".".join(["seedtune", *file.relative_to(ROOT).with_suffix("").parts])
        for file in files("runtime")
        if file.parent.name != "engines"
    ] + ["seedtune.runtime.engines"]
    script = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(modules)],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    loaded = json.loads(done.stdout)
    assert "seedtune.runtime.bundle" in loaded
    forbidden = ENGINE_LIBRARIES | HOST_LIBRARIES | {"seedtune.export", "seedtune.host_tools"}
    assert not [name for name in loaded if within(name, forbidden)]


def test_the_rule_sees_every_form_of_import(tmp_path: Path) -> None:
    """The check itself: relative imports and imports inside functions are found."""
    file = ROOT / "runtime" / "tasks" / "task.py"
    assert "seedtune.runtime.bundle" in set(imports_of(file, "seedtune.runtime"))
    init = ROOT / "runtime" / "tasks" / "__init__.py"
    assert "seedtune.runtime.tasks.task" in set(imports_of(init, "seedtune.runtime"))
    assert "seedtune.runtime.errors" in set(imports_of(init, "seedtune.runtime"))

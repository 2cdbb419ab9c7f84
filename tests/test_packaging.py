"""What pyproject.toml puts into the wheel, by reading it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETTINGS = PROJECT["tool"]["setuptools"]
TOP = ("runtime", "export", "host_tools")
CHECKOUT_ONLY = "seedtune.host_tools.bench"


def folder_of(package):
    return ROOT.joinpath(*package.split(".")[1:])


def test_every_package_but_the_benchmarks_is_installed():
    found = {
        ".".join(["seedtune", *file.parent.relative_to(ROOT).parts])
        for top in TOP
        for file in (ROOT / top).rglob("__init__.py")
    }
    left_out = {name for name in found if f"{name}.".startswith(f"{CHECKOUT_ONLY}.")}
    assert CHECKOUT_ONLY in left_out
    assert sorted(SETTINGS["packages"]) == sorted(found - left_out)
    assert SETTINGS["package-dir"] == {f"seedtune.{top}": top for top in TOP}


def test_every_source_file_is_in_a_package_or_named_as_data():
    installed = {folder_of(package): package for package in SETTINGS["packages"]}
    for top in TOP:
        for file in (ROOT / top).rglob("*"):
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            package = installed.get(file.parent)
            if package is None:
                assert file.is_relative_to(folder_of(CHECKOUT_ONLY)), file
            elif file.suffix != ".py":
                assert file.name in SETTINGS["package-data"].get(package, []), file


def test_nothing_installed_imports_the_benchmarks():
    for package in SETTINGS["packages"]:
        for file in folder_of(package).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            if file.name != "bench.py":  # the command, which says what to do where they are not
                assert "host_tools.bench" not in text and "from .bench" not in text, file
                assert "..bench" not in text, file

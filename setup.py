"""A wheel that carries the native engine, so that a device needs no compiler and no executorch.

    SEEDTUNE_NATIVE=1 python -m build --wheel

compiles ``runtime/engines/executorch_native.cpp`` against the executorch package that is installed,
and puts it and the four libraries that it needs into ``seedtune/runtime/engines/native``. Without
the variable nothing is compiled, and the first use on a device is what compiles it.

For another machine, also ``CXX`` (a cross compiler), ``SEEDTUNE_EXECUTORCH`` (the folder
``executorch`` of that machine's wheel, unpacked) and ``SEEDTUNE_PLATFORM`` (such as
``manylinux_2_34_aarch64``).
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
NATIVE = bool(os.environ.get("SEEDTUNE_NATIVE"))
GLIBC = "manylinux_2_34"
"""What executorch's own libraries ask for."""


class BuildWithEngine(build_py):
    """Copies the packages and, where it is asked for, builds the engine among them."""

    def run(self) -> None:
        super().run()
        if NATIVE and not self.editable_mode:
            _carry(Path(self.build_lib, "seedtune", "runtime", "engines"))


def _carry(engines: Path) -> None:
    """Put the engine, its libraries and their licence where the package looks for them."""
    compiling, executorch = _compiling(), _executorch()
    folder = engines / compiling.CARRIED.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in compiling.LIBRARIES:
        shutil.copyfile(*(compiling.library(each, name) for each in (executorch / "lib", folder)))
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    command = compiling.command(compiler, executorch, folder / compiling.ENGINE)
    subprocess.run([*command, "-s", "-Wl,-rpath,$ORIGIN"], check=True)
    (licence,) = executorch.parent.glob("executorch-*.dist-info/licenses/LICENSE")
    shutil.copyfile(licence, folder / "LICENSE.executorch")


class PlatformWheel(bdist_wheel):
    """Of one platform and any Python: the engine is loaded by ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        if not NATIVE:
            return super().get_tag()
        machine = sysconfig.get_platform().removeprefix("linux-")
        return "py3", "none", os.environ.get("SEEDTUNE_PLATFORM") or f"{GLIBC}_{machine}"


def _compiling() -> ModuleType:
    """``executorch_native_compile``, by its file: the package is not installed yet."""
    file = HERE / "runtime" / "engines" / "executorch_native_compile.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _executorch() -> Path:
    given = os.environ.get("SEEDTUNE_EXECUTORCH")
    if given:
        return Path(given)
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "SEEDTUNE_NATIVE takes an executorch package: name its folder in SEEDTUNE_EXECUTORCH"
        )
    return Path(next(iter(spec.submodule_search_locations)))


class Binary(Distribution):
    """Whose files belong where those of one platform lie."""

    def has_ext_modules(self) -> bool:
        return NATIVE


setup(distclass=Binary, cmdclass={"build_py": BuildWithEngine, "bdist_wheel": PlatformWheel})

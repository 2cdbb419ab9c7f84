"""The folder from which the emulated device imports ``seedtune``, its runtime and nothing else, and
the torch-free engine, cross-compiled for it."""

import hashlib
import shutil
import zipfile
from pathlib import Path

from seedtune import runtime
from seedtune.runtime.engines import executorch_native_build as native_build
from seedtune.runtime.engines.executorch_native_compile import CARRIED
from seedtune.runtime.files import is_whole

from .cached_folder import cached_folder
from .host import EmulatorError

_PLATFORM = "linux-aarch64"
_COMPILER = ["aarch64-linux-gnu-g++"]
_CARRIED = f"seedtune/runtime/engines/{CARRIED.name}/"


def device_packages() -> Path:
    """Folder for the device's ``PYTHONPATH``, in seedtune's cache.

    A copy, named by its content: a run takes minutes, and an edit of the sources must not reach
    its later sessions.

    Raises:
        EmulatorError: the cache cannot be written.
    """
    source = Path(runtime.__path__[0])
    unwanted = shutil.ignore_patterns("__pycache__")
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*")):
        if file.is_file() and file.parent.name != "__pycache__":
            content = file.read_bytes()
            digest.update(f"{file.relative_to(source)}\0{len(content)}\0".encode() + content)

    def fill(folder: Path, scratch: Path) -> None:
        shutil.copytree(source, folder / "seedtune" / "runtime", ignore=unwanted)

    return cached_folder(f"packages-{digest.hexdigest()[:16]}", fill)


def packages_of(wheel: Path) -> Path:
    """The same folder, made of a wheel of seedtune that carries the engine for the device.

    Raises:
        EmulatorError: it cannot be read, or carries no engine for this device.
    """
    if not wheel.name.endswith("_aarch64.whl"):
        raise EmulatorError(f"{wheel}: is no wheel for aarch64; setup.py says how to build one")
    try:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        with zipfile.ZipFile(wheel) as archive:
            if not any(name.startswith(_CARRIED) for name in archive.namelist()):
                raise EmulatorError(f"{wheel}: carries no engine; build it with SEEDTUNE_NATIVE=1")
            return cached_folder(
                f"packages-{digest[:16]}", lambda folder, scratch: archive.extractall(folder)
            )
    except (OSError, zipfile.BadZipFile) as error:
        raise EmulatorError(f"{wheel}: cannot be read as a wheel: {error}") from error


def build_engine(sysroot: Path) -> Path:
    """The library in seedtune's cache, where the device looks for it, built if it is not there.

    Raises:
        EngineUnavailable: it cannot be compiled.
    """
    executorch = sysroot / "usr/lib/python3/dist-packages/executorch"
    engine = native_build.built_path(executorch, _PLATFORM)
    if not is_whole(engine):
        native_build.build(_COMPILER, executorch, engine)
    return engine

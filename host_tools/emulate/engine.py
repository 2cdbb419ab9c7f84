"""The torch-free engine, cross-compiled for the emulated device."""

from pathlib import Path

from seedtune.runtime.engines import executorch_native_build as native_build
from seedtune.runtime.files import is_whole

_PLATFORM = "linux-aarch64"
_COMPILER = ["aarch64-linux-gnu-g++"]


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

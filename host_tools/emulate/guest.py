"""Python of the arm64 user space under qemu's user mode, with seedtune's runtime in it.

The guest sees the host's files at their own paths, the sysroot's before them. Child processes
of the guest would need the host's binfmt registration; it starts none.
"""

import hashlib
from pathlib import Path

from seedtune import runtime
from seedtune.runtime.bundle_archive import default_cache
from seedtune.runtime.engines import native_build

from .sysroot import PYTHON, prepare_sysroot

MACHINE = "cortex-a76"
"""A core of 2018's phones: armv8.2 with dot products and half floats."""
_PLATFORM = "linux-aarch64"
_COMPILER = ["aarch64-linux-gnu-g++"]


class Guest:
    """The emulated device, ready to run Python."""

    def __init__(self, sysroot: Path | None = None) -> None:
        """Prepare the sysroot if none is given, and cross-compile the engine for it.

        Raises:
            EmulatorError: the sysroot cannot be prepared.
            EngineUnavailable: the engine cannot be compiled.
        """
        self.sysroot = sysroot or prepare_sysroot()
        executorch = self.sysroot / "usr/lib/python3/dist-packages/executorch"
        engine = native_build.built_path(executorch, _PLATFORM)
        if not engine.is_file():
            native_build.build(_COMPILER, executorch, engine)
        self._packages = _runtime_alone()

    def command(self, *arguments: str | Path) -> list[str]:
        """Command of the host that runs the guest's Python with ``arguments``."""
        variables = {
            "PYTHONPATH": self._packages,
            "PYTHONDONTWRITEBYTECODE": "1",  # would land beside the host's own
            "SEEDTUNE_CACHE": default_cache(),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        settings = [part for name in variables for part in ("-E", f"{name}={variables[name]}")]
        python = self.sysroot / "usr/bin" / f"python{PYTHON}"
        emulator = ["qemu-aarch64", "-cpu", MACHINE, "-L", str(self.sysroot)]
        return [*emulator, *settings, str(python), *map(str, arguments)]


def _runtime_alone() -> Path:
    """A folder for the guest's path in which ``seedtune`` has its runtime and nothing else."""
    source = Path(runtime.__path__[0])
    name = hashlib.sha256(bytes(source)).hexdigest()[:16]
    folder = default_cache() / "emulator" / "packages" / name
    link = folder / "seedtune" / "runtime"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(source, target_is_directory=True)
    return folder

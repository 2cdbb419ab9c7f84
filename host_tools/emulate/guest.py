"""Python of the arm64 user space under qemu's user mode, with seedtune's runtime in it.

The guest sees the host's files at their own paths, the sysroot's before them. Child processes
of the guest would need the host's binfmt registration; it starts none.
"""

from pathlib import Path

from seedtune.runtime.files import default_cache

from .engine import build_engine
from .host import CPU, USER_MODE, Progress, need_packages, quiet
from .packages import device_packages
from .sysroot import PYTHON, bytecode_folder, prepare_sysroot


class Guest:
    """The emulated device, ready to run Python."""

    def __init__(self, progress: Progress = quiet) -> None:
        """Prepare sysroot and engine in the cache, where they are not there yet.

        Raises:
            EmulatorError: a package is missing on the host, or a download fails.
            EngineUnavailable: the engine cannot be compiled.
        """
        need_packages(USER_MODE)
        self.sysroot = prepare_sysroot(progress)
        build_engine(self.sysroot)
        self._packages = device_packages()

    def command(self, *arguments: str | Path) -> list[str]:
        """Command of the host that runs the guest's Python with ``arguments``."""
        variables = {
            "PYTHONPATH": self._packages,
            "PYTHONPYCACHEPREFIX": bytecode_folder(),
            "SEEDTUNE_CACHE": default_cache(),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        settings = [part for name in variables for part in ("-E", f"{name}={variables[name]}")]
        python = self.sysroot / "usr/bin" / f"python{PYTHON}"
        emulator = ["qemu-aarch64", "-cpu", CPU, "-L", str(self.sysroot)]
        return [*emulator, *settings, str(python), *map(str, arguments)]

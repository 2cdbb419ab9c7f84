"""A JVM in this process with ExecuTorch's Android classes and native library, as an app has it."""

import ctypes
import os
import sys
from pathlib import Path
from typing import NoReturn

from .downloads import fetch
from .kotlin import compile_kotlin
from .shim import ENTRY, SYSTEM, library_folder

_BRIDGE = Path(__file__).with_name("bridge")
_LOADER = Path(__file__).with_name("nativeloader")


def classpath() -> list[str]:
    """ExecuTorch's classes and what they stand on, without an app's.

    Raises:
        DownloadError, RehearsalError: something cannot be had here.
    """
    jars = [fetch("executorch") / "executorch.jar", fetch("fbjni-java") / "fbjni.jar"]
    stdlib = fetch("kotlin") / "kotlin-stdlib.jar"
    return [str(compile_kotlin([_LOADER])), *map(str, jars), str(stdlib)]


def start(*classes: Path) -> None:
    """Start the JVM; ``java`` can be imported from then on. End the process by ``leave``.

    Args:
        classes: folders or jars of the app.
    """
    import jpype

    folder = library_folder("arm64" if os.uname().machine == "aarch64" else "x86_64")
    for name in (*SYSTEM, ENTRY):  # found by their names from then on
        ctypes.CDLL(str(folder / name))
    sys.path.insert(0, str(_BRIDGE))
    jpype.startJVM(
        f"-Djava.library.path={folder}",
        "-Xmx256m",
        classpath=[*map(str, classes), *classpath()],
        convertStrings=True,
    )


def leave(status: int = 0) -> NoReturn:
    """End the process at once: fbjni has a thread that keeps a JVM from ending."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

"""The arm64 user space: Debian packages and aarch64 wheels unpacked into one folder.

Nothing is installed on the host.
"""

import hashlib
import importlib.metadata
import sys
import zipfile
from pathlib import Path

from .cached_folder import cached_folder
from .debian import download_debs
from .host import Progress, quiet, run_command

PYTHON = "3.13"
"""What Debian 13 has; its wheels are cp313."""

_DEBS = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "libstdc++6",
    "libgomp1",
    "zlib1g",
)
_WHEELS = ("executorch", "numpy", "safetensors", "tokenizers")
_LAYOUT = 1
"""Raised when the way that a sysroot is put together changes, so that old ones are not used."""


def prepare_sysroot(progress: Progress = quiet) -> Path:
    """The sysroot in seedtune's cache, put together first where it is not there (a minute).

    The wheels have the versions that are installed on the host.

    Raises:
        EmulatorError: a download fails, or the cache cannot be written.
    """
    wheels = [f"{name}=={importlib.metadata.version(name)}" for name in _WHEELS]
    key = hashlib.sha256(repr((_LAYOUT, _DEBS, wheels)).encode()).hexdigest()[:16]

    def fill(root: Path, scratch: Path) -> None:
        _skeleton(root)
        progress("downloading Debian packages")
        for deb in download_debs(_DEBS, scratch / "apt"):
            failure = f"{deb.name} cannot be unpacked"
            run_command(["dpkg-deb", "-x", str(deb), str(root)], failure)
        progress("downloading wheels")
        packages = root / "usr/lib/python3/dist-packages"
        packages.mkdir(parents=True, exist_ok=True)
        for wheel in _download_wheels(wheels, scratch / "wheels"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(packages)

    return cached_folder(f"arm64-{key}", fill)


def bytecode_folder() -> Path:
    """Where the device's Python keeps what it compiled: seconds less at every later start.

    Raises:
        EmulatorError: the cache cannot be written.
    """
    return cached_folder(f"bytecode-{PYTHON}", lambda folder, scratch: None)


def _skeleton(root: Path) -> None:
    """Debian's merged /usr: the links must be there before the first package is unpacked."""
    for name in ("bin", "lib", "sbin", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def _download_wheels(requirements: list[str], folder: Path) -> list[Path]:
    version = PYTHON.replace(".", "")
    options = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--dest={folder}"]
    options += [f"--python-version={version}", f"--abi=cp{version}", "--abi=abi3"]
    options += [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    run_command([*command, *options, *requirements], "the aarch64 wheels cannot be downloaded")
    return sorted(folder.glob("*.whl"))

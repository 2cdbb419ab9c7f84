"""The arm64 user space: Debian packages and aarch64 wheels unpacked into one folder.

Nothing is installed on the host. Packages come through a private apt configuration, checked
against the host's own sources and keys; wheels come through pip.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from seedtune.runtime.bundle_archive import default_cache
from seedtune.runtime.errors import SeedtuneError

PYTHON = "3.13"
"""What Debian 13 has; its wheels are cp313."""

HOST_PACKAGES = {
    "qemu-aarch64": "qemu-user",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
"""Commands that the host needs, and the Debian packages that have them."""

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

Progress = Callable[[str], None]


class EmulatorError(SeedtuneError):
    """The emulator cannot be set up, or this host lacks what it needs."""


def missing_packages() -> list[str]:
    """Debian packages that the host lacks, in the order of ``HOST_PACKAGES``."""
    return [package for command, package in HOST_PACKAGES.items() if shutil.which(command) is None]


def prepare_sysroot(progress: Progress = lambda what: None) -> Path:
    """The sysroot in seedtune's cache, put together first where it is not there (a minute).

    The wheels have the versions that are installed on the host. The folder appears whole or not
    at all.

    Raises:
        EmulatorError: a command is missing on the host, or a download fails.
    """
    missing = missing_packages()
    if missing:
        raise EmulatorError(f"the emulator needs: apt-get install {' '.join(missing)}")
    wheels = [f"{name}=={importlib.metadata.version(name)}" for name in _WHEELS]
    key = hashlib.sha256(repr((_LAYOUT, _DEBS, wheels)).encode()).hexdigest()[:16]
    parent = default_cache() / "emulator"
    target = parent / f"arm64-{key}"
    if target.is_dir():
        return target
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sysroot.", dir=parent) as folder:
            root = Path(folder) / "root"
            _skeleton(root)
            progress("downloading Debian packages")
            for deb in _download_debs(Path(folder) / "apt"):
                _run(["dpkg-deb", "-x", str(deb), str(root)], f"{deb.name} cannot be unpacked")
            progress("downloading wheels")
            packages = root / "usr/lib/python3/dist-packages"
            packages.mkdir(parents=True, exist_ok=True)
            for wheel in _download_wheels(wheels, Path(folder) / "wheels"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(packages)
            try:
                os.rename(root, target)
            except OSError:
                if not target.is_dir():  # else another process was first
                    raise
    except OSError as error:
        raise EmulatorError(f"{parent}: cannot be written: {error}; set SEEDTUNE_CACHE") from error
    return target


def _skeleton(root: Path) -> None:
    """Debian's merged /usr: the links must be there before the first package is unpacked."""
    for name in ("bin", "lib", "sbin", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def _download_debs(folder: Path) -> list[Path]:
    """The arm64 packages of ``_DEBS`` and all that they need, as files."""
    archives = folder / "cache" / "archives"
    for each in (archives / "partial", folder / "lists" / "partial", folder / "state"):
        each.mkdir(parents=True)
    (folder / "status").touch()  # nothing is installed, so everything is downloaded
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::State "{folder}/state";\n'
        f'Dir::State::lists "{folder}/lists";\n'
        f'Dir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
        'APT::Architecture "arm64";\n'
        'APT::Architectures { "arm64"; };\n'
        'APT::Install-Recommends "false";\n'
        'APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
    failed = f"Debian's arm64 packages cannot be downloaded (needs Debian with Python {PYTHON})"
    _run(["apt-get", "update"], failed, environment)
    _run(["apt-get", "install", "--yes", "--download-only", *_DEBS], failed, environment)
    return sorted(archives.glob("*.deb"))


def _download_wheels(requirements: list[str], folder: Path) -> list[Path]:
    version = PYTHON.replace(".", "")
    options = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--dest={folder}"]
    options += [f"--python-version={version}", f"--abi=cp{version}", "--abi=abi3"]
    options += [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    _run([*command, *options, *requirements], "the aarch64 wheels cannot be downloaded")
    return sorted(folder.glob("*.whl"))


def _run(command: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        lines = (
            done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no reason"]
        )
        raise EmulatorError(f"{failure}: {lines[-1]}")

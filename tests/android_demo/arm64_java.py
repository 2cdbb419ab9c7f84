"""Java for the emulated arm64 machine: what a phone's own library and classes run on."""

import hashlib
import importlib.metadata
import os
import shutil
import sys
import zipfile
from pathlib import Path

from seedtune.host_tools.emulate.host import cached_folder, download_debs, run_command
from seedtune.host_tools.emulate.system import PYTHON

_JAVA = "openjdk-21-jre-headless"


def java_folder() -> Path:
    """Java for arm64 in ``jvm``, and JPype, in the cache; put together first where it is not there.

    Raises:
        EmulatorError: a download fails.
    """
    jpype = importlib.metadata.version("JPype1")

    def fill(folder: Path, scratch: Path) -> None:
        unpacked = scratch / "debs"
        unpacked.mkdir()
        for deb in download_debs([_JAVA], scratch / "apt"):
            if deb.name.startswith(_JAVA):
                run_command(["dpkg-deb", "-x", str(deb), str(unpacked)], f"{deb.name} is damaged")
        (java,) = (unpacked / "usr/lib/jvm").glob("java-21-*")
        for link in [each for each in java.rglob("*") if each.is_symlink()]:
            target = Path(os.readlink(link))
            inside = unpacked / str(target).lstrip("/")
            if target.is_absolute():  # settings, in /etc; the emulator would look on the host
                link.unlink()
                if inside.is_file():
                    link.write_bytes(inside.read_bytes())
                elif inside.is_dir():
                    shutil.copytree(inside, link)
        java.rename(folder / "jvm")
        version = PYTHON.replace(".", "")
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary=:all:", f"--python-version={version}", f"--abi=cp{version}"),
            *("--platform=manylinux_2_17_aarch64", "--platform=manylinux_2_28_aarch64"),
            *("--implementation=cp", f"--dest={scratch / 'wheels'}", f"JPype1=={jpype}"),
        ]
        run_command(command, "JPype for arm64 cannot be downloaded")
        for wheel in (scratch / "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "python")

    key = hashlib.sha256(repr((_JAVA, jpype, PYTHON)).encode()).hexdigest()[:16]
    return cached_folder(f"arm64-java-{key}", fill)

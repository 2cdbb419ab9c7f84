"""The emulated arm64 device with a Java: what a phone's own library and classes run on."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from jvm_scripts import DEMO
from seedtune.host_tools.emulate.cached_folder import cached_folder
from seedtune.host_tools.emulate.debian import download_debs
from seedtune.host_tools.emulate.guest import Guest
from seedtune.host_tools.emulate.host import run_command
from seedtune.host_tools.emulate.sysroot import PYTHON

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


def command_with_java(guest: Guest, *arguments: str | Path) -> list[str]:
    """Command of the host that runs the guest's Python with the rehearsal and a JVM in reach."""
    from rehearsal.shim import library_folder

    folder = java_folder()
    plain = guest.command(*arguments)
    place = plain.index("-E")
    path = [DEMO, folder / "python", Path(__file__).parent]
    settings = {
        "LD_PRELOAD": library_folder("arm64") / "pad.so",
        "JAVA_HOME": folder / "jvm",
    }
    added = [part for name in settings for part in ("-E", f"{name}={settings[name]}")]
    return [
        *plain[:place],
        *added,
        *(
            part + "".join(f":{each}" for each in path) if part.startswith("PYTHONPATH=") else part
            for part in plain[place:]
        ),
    ]


def run_with_java(guest: Guest, *arguments: str | Path, killed: bool = False) -> str:
    """Run to the end, or to the kill; what was printed."""
    command = command_with_java(guest, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=1500)
    assert (done.returncode < 0) == killed, done.stdout + done.stderr
    return done.stdout

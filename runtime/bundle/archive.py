"""Bundles that are no folder here yet: one file, a zip without compression, unpacked once into a
cache; or a place on the Hugging Face hub, brought here part by part, as their manifest names them.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import BundleError
from ..files import clean_up, default_cache, replace_folder, replacing, sync_tree, workplace
from ..hub import place_of
from .manifest import MANIFEST, Manifest, check_identity, parse_manifest
from .parts import read_part
from .progress import CHUNK, Progress, ProgressFailed, counting, hash_pieces

_LARGEST_MANIFEST = 1 << 24


def pack_archive(folder: Path, parts: Iterable[str], file: Path) -> Path:
    """Write the manifest and ``parts`` of ``folder`` into ``file``, whole or not at all."""
    try:
        with replacing(file) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
            for part in (MANIFEST, *parts):
                # A fixed date and mode: the same bundle packs to the same bytes.
                info = zipfile.ZipInfo(part, (1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                info.file_size = (folder / part).stat().st_size
                with (folder / part).open("rb") as source, archive.open(info, "w") as target:
                    shutil.copyfileobj(source, target, CHUNK)
    except OSError as error:
        raise BundleError(f"{file}: cannot be written: {error.strerror}") from error
    return file


def unpack_archive(
    file: Path,
    cache: Path | None = None,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Check ``file`` against its own manifest and return the folder that holds its parts.

    The folder is named after the manifest's hash, so that every archive of one bundle shares it.
    Entry names are never used as paths: only the manifest's are, which are plain file names.

    Args:
        sha256: see ``check_identity``.
        progress: hears of each piece of a part, of 1 MiB at most.

    Raises:
        BundleError: not a bundle archive, another bundle than asked for, a part is missing or
            altered, or the cache cannot be written.
        ProgressFailed: ``progress`` raised something.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _check_entries(archive, file)
            if entries[MANIFEST].file_size > _LARGEST_MANIFEST:
                raise BundleError(f"{file}: {MANIFEST} has {entries[MANIFEST].file_size} bytes")
            manifest = parse_manifest(archive.read(entries[MANIFEST]), file)
            check_identity(manifest.sha256, sha256, file)
            _check_names(set(entries), manifest, file)
            folder = (cache or default_cache()) / "bundles" / manifest.sha256
            clean_up(folder.parent)
            checked = counting(progress, manifest.bytes)
            if folder.is_dir():
                # The archive itself is still checked: a damaged copy must not pass as a good one.
                for name in manifest.parts:
                    _check_part(archive, entries[name], manifest, file, None, checked)
            else:
                _unpack(archive, entries, manifest, file, folder, checked)
    except (BundleError, ProgressFailed):
        raise
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile answers damaged archives with many kinds of exception
        raise BundleError(f"{file}: truncated or altered archive ({str(error)[:200]})") from error
    return folder


def _check_entries(archive: zipfile.ZipFile, file: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries by name; a name that stands there twice, or compression, is refused."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise BundleError(f"{file}: unexpected entry {info.filename[:80]!r}")
        # No compression, so no archive that unpacks to more than its own size.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise BundleError(f"{file}: entry {info.filename[:80]!r} is compressed or altered")
        entries[info.filename] = info
    if MANIFEST not in entries:
        raise BundleError(f"{file}: {MANIFEST} is missing")
    return entries


def _check_names(names: set[str], manifest: Manifest, file: Path) -> None:
    wanted = {MANIFEST, *manifest.parts}
    for name in sorted(wanted - names):
        raise BundleError(f"{file}: {name} is missing")
    for name in sorted(names - wanted):
        raise BundleError(f"{file}: unexpected entry {name[:80]!r}")


def _check_part(
    archive: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    manifest: Manifest,
    file: Path,
    target: IO[bytes] | None,
    checked: Callable[[int], None],
) -> None:
    """Hash one entry, copying it to ``target`` if given, and compare it with the manifest."""
    size = manifest.parts[entry.filename].bytes
    if entry.file_size != size:  # before any of it is written
        raise BundleError(
            f"{file}: {entry.filename} has {entry.file_size} bytes, the manifest says {size}: "
            "truncated or altered; copy it again"
        )
    with archive.open(entry) as stream:
        digest = hash_pieces(stream, checked, target)
    if digest != manifest.parts[entry.filename].sha256:
        raise BundleError(f"{file}: {entry.filename} is truncated or altered; copy it again")


def _unpack(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    manifest: Manifest,
    file: Path,
    folder: Path,
    checked: Callable[[int], None],
) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with workplace(folder) as work:
            new = work / "bundle"
            new.mkdir()
            for name in manifest.parts:
                with (new / name).open("wb") as target:
                    _check_part(archive, entries[name], manifest, file, target, checked)
            (new / MANIFEST).write_bytes(archive.read(entries[MANIFEST]))
            sync_tree(new)
            replace_folder(new, folder)  # another process may have unpacked the same bundle first
    except OSError as error:
        raise BundleError(
            f"{folder.parent}: cannot unpack {file} there: {error.strerror}; set SEEDTUNE_CACHE"
        ) from error


def local_bundle(path: str | Path, sha256: str | None = None) -> Path:
    """``path``; of a place on the hub (see ``hub``), the folder or file here that has its parts.

    All are of one commit, and nothing else of the repository is downloaded. Whoever opens the
    folder checks them.

    Args:
        sha256: see ``check_identity``.

    Raises:
        DownloadError: the hub does not deliver them.
        BundleError: its manifest makes no sense, or is of another bundle than asked for.
    """
    place = place_of(path)
    if place is None:
        return Path(path)
    if place.path.endswith(".seedtune"):
        return place.file()
    place = place.pinned()
    file = place.file(MANIFEST)
    manifest = parse_manifest(read_part(file), file.parent)
    check_identity(manifest.sha256, sha256, file.parent)
    for name in manifest.parts:
        _unlink(place.file(name))
    return file.parent


def _unlink(file: Path) -> None:
    """Put the file itself, as a second name of it, where the client's cache has a link to it:
    onnxruntime follows none out of a folder. Where that cannot be, the link stays."""
    if not file.is_symlink():
        return
    name = file.with_name(f".{file.name}.{os.getpid()}")
    with suppress(OSError):
        os.link(file.resolve(), name)
        os.replace(name, file)

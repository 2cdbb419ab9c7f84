"""The one-file form of a bundle: a zip without compression, unpacked once into a cache."""

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ..errors import BundleError
from ..files import default_cache
from .manifest import MANIFEST, Manifest, parse_manifest

_CHUNK = 1 << 20


def pack_archive(folder: Path, parts: Iterable[str], file: Path) -> Path:
    """Write the manifest and ``parts`` of ``folder`` into ``file``, whole or not at all."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise BundleError(f"{file}: cannot be written: {error.strerror}") from error
    work = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for part in (MANIFEST, *parts):
                    # A fixed date and mode: the same bundle packs to the same bytes.
                    info = zipfile.ZipInfo(part, (1980, 1, 1, 0, 0, 0))
                    info.external_attr = 0o644 << 16
                    info.file_size = (folder / part).stat().st_size
                    with (folder / part).open("rb") as source, archive.open(info, "w") as target:
                        shutil.copyfileobj(source, target, _CHUNK)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(work, 0o644)  # mkstemp makes it private
        os.replace(work, file)
    except OSError as error:
        raise BundleError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        work.unlink(missing_ok=True)
    return file


def unpack_archive(file: Path, cache: Path | None = None) -> Path:
    """Check ``file`` against its own manifest and return the folder that holds its parts.

    The folder is named after the manifest's hash, so that every archive of one bundle shares it.
    Entry names are never used as paths: only the manifest's are, which are plain file names.

    Raises:
        BundleError: not a bundle archive, a part is missing or altered, or the cache cannot be
            written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _check_entries(archive, file)
            manifest = parse_manifest(archive.read(entries[MANIFEST]), file)
            _check_names(set(entries), manifest, file)
            folder = (cache or default_cache()) / "bundles" / manifest.sha256
            if folder.is_dir():
                # The archive itself is still checked: a damaged copy must not pass as a good one.
                for name in manifest.parts:
                    _check_part(archive, entries[name], manifest, file, None)
            else:
                _unpack(archive, entries, manifest, file, folder)
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile answers damaged archives with many kinds of exception
        raise BundleError(f"{file}: truncated or altered archive ({error})") from error
    return folder


def _check_entries(archive: zipfile.ZipFile, file: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries by name; a name that stands there twice, or compression, is refused."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise BundleError(f"{file}: unexpected entry {info.filename!r}")
        # No compression, hence no archive that unpacks to more than its own size.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise BundleError(f"{file}: entry {info.filename!r} is compressed or altered")
        entries[info.filename] = info
    if MANIFEST not in entries:
        raise BundleError(f"{file}: {MANIFEST} is missing")
    return entries


def _check_names(names: set[str], manifest: Manifest, file: Path) -> None:
    wanted = {MANIFEST, *manifest.parts}
    for name in sorted(wanted - names):
        raise BundleError(f"{file}: {name} is missing")
    for name in sorted(names - wanted):
        raise BundleError(f"{file}: unexpected entry {name!r}")


def _check_part(
    archive: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    manifest: Manifest,
    file: Path,
    target: IO[bytes] | None,
) -> None:
    """Hash one entry, copying it to ``target`` if given, and compare it with the manifest."""
    digest = hashlib.sha256()
    with archive.open(entry) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            if target is not None:
                target.write(chunk)
    if digest.hexdigest() != manifest.parts[entry.filename].sha256:
        raise BundleError(f"{file}: {entry.filename} is truncated or altered; copy it again")


def _unpack(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    manifest: Manifest,
    file: Path,
    folder: Path,
) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".unpack.", dir=folder.parent))
    except OSError as error:
        raise BundleError(
            f"{folder.parent}: cannot unpack {file} there: {error.strerror}; set SEEDTUNE_CACHE"
        ) from error
    try:
        for name in manifest.parts:
            with (work / name).open("wb") as target:
                _check_part(archive, entries[name], manifest, file, target)
        (work / MANIFEST).write_bytes(archive.read(entries[MANIFEST]))
        try:
            os.rename(work, folder)
        except OSError:
            if not folder.is_dir():  # else another process unpacked the same bundle first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)

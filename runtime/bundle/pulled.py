"""Bundles on the Hugging Face hub, brought here part by part, as their manifest names them."""

import os
from contextlib import suppress
from pathlib import Path

from ..hub import place_of
from .manifest import MANIFEST, check_identity, parse_manifest
from .parts import read_part


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

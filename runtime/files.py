"""Where seedtune keeps what it made, and how a file is replaced: it is old or new, never half."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def default_cache() -> Path:
    """``$SEEDTUNE_CACHE``, or ``seedtune`` in the user's cache folder."""
    own = os.environ.get("SEEDTUNE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seedtune"


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` as ``replacing`` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write; at the end it is synced and takes its place.

    Raises:
        OSError: the folder cannot be written; ``path`` is as it was.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, renames) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

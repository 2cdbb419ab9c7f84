"""Files that are too large to hold: hashed once, and proven the same when they are opened again.

An engine maps a program by its name, perhaps long after the bundle was checked. Whether the
file is still the one that was hashed shows in what the system says of it: a change of one byte, or
another file of that name, leaves a trace there. Where there is one, the file is hashed again.
Nothing here can notice what is written into a file while it is mapped.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from ..errors import BundleError
from .manifest import Part
from .progress import hash_pieces

Stamp = tuple[int, ...]
"""Device, number, size, and times of the last change, of a file."""
_SETTLED_NS = 10**9
"""Two changes within one tick of the file system's clock (at most some 10 ms) have one time."""


def check_file(
    path: Path, part: Part, checked: Callable[[int], None] = lambda count: None
) -> Stamp | None:
    """Hash a file and compare it with the manifest.

    Args:
        checked: called with the bytes of each piece, of 1 MiB at most, once it is hashed.

    Returns:
        How to recognise the file later; None if it changed too recently to tell.

    Raises:
        BundleError: it cannot be read, or is not what the manifest says.
    """
    with _opened(path) as stream:
        return _check(stream, path, part, checked)


@contextmanager
def open_checked(path: Path, part: Part, stamp: Stamp | None) -> Iterator[Path]:
    """A name by which the file that ``check_file`` saw opens, while the context lasts.

    On Linux it is that of an open file, which stays the same whatever happens to ``path``.

    Raises:
        BundleError: there is another file now, or it was altered.
    """
    with _opened(path) as stream:
        if stamp is None or stamp != _stamp(os.fstat(stream.fileno())):
            _check(stream, path, part, lambda count: None)
        own = Path(f"/proc/self/fd/{stream.fileno()}")
        yield own if own.exists() else path


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    with stream:
        yield stream


def _check(
    stream: BufferedReader, path: Path, part: Part, checked: Callable[[int], None]
) -> Stamp | None:
    try:
        status = os.fstat(stream.fileno())  # before: what changes meanwhile shows later
        check_size(path, status.st_size, part)
        digest = hash_pieces(stream, checked)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    check_digest(path, digest, part)
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    return _stamp(status) if time.time_ns() - changed > _SETTLED_NS else None


def check_size(path: Path, size: int, part: Part) -> None:
    """Refuse a file whose size is not the manifest's."""
    if size != part.bytes:
        raise BundleError(
            f"{path}: has {size} bytes, the manifest says {part.bytes}: "
            f"{'truncated' if size < part.bytes else 'altered'}; copy the bundle again"
        )


def check_digest(path: Path, digest: str, part: Part) -> None:
    """Refuse a file whose SHA-256 (hex) is not the manifest's."""
    if digest != part.sha256:
        raise BundleError(f"{path}: altered (its SHA-256 differs); copy the bundle again")


def _stamp(status: os.stat_result) -> Stamp:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )

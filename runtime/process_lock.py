"""An exclusive lock on an open file, which dies with its process however that ends."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LOCKED_FILES_MOVE = fcntl is not None
"""Whether a file can be renamed, replaced and deleted while somebody has it open and locked."""
_LOOK = 0.25
"""Seconds from one look at a lock that another process has to the next."""
_FAR = 0x7FFF0000
"""Windows locks bytes against reading too: one that no file here has."""


def lock(descriptor: int) -> bool:
    """Lock an open file; False if another opening of it has the lock, in this process or another.

    Closing the descriptor unlocks it.

    Raises:
        OSError: the file system knows no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except PermissionError:
        return False
    return True


def is_at(descriptor: int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file is the one that ``path`` names now."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


@contextlib.contextmanager
def in_turn(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of the file ``path``, made if need be, once whoever has it is done or dead.

    Args:
        waiting: called once if it has to be waited for.

    Raises:
        OSError: the file cannot be made, or its file system knows no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not lock(descriptor):
            waiting()
            while not lock(descriptor):
                time.sleep(_LOOK)
        yield
    finally:
        os.close(descriptor)

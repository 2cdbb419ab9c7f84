"""An exclusive lock on an open file, which dies with its process however that ends."""

import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LOCKED_FILES_MOVE = fcntl is not None
"""Whether a file can be renamed, replaced and deleted while somebody has it open and locked."""
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

"""One writer a run folder, by a lock that dies with its process."""

import fcntl
import os
import weakref
from pathlib import Path

from ..errors import JournalError

LOCK_FILE = "journal.lock"

_held: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


class RunLock:
    """Exclusive ``flock`` on ``journal.lock`` in the run folder.

    The file of its own keeps the lock meaningful while the journal is replaced by a rename. The
    kernel drops the lock when the process ends, however it ends; the file itself stays.

    Raises:
        JournalError: another writer holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_FILE
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JournalError(f"{path}: cannot write here ({error.strerror})") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise JournalError(
                f"{path}: another writer has this run (process {holder}); "
                "stop it, or branch into a folder of your own"
            ) from None
        except OSError as error:
            os.close(self._fd)
            raise JournalError(f"{path}: cannot be locked ({error.strerror})") from None
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except OSError:
            pass  # the number only serves the other writer's message; a full disk may refuse it
        _held.add(self)

    def release(self) -> None:
        """Let the next writer in. Calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _drop_in_child() -> None:
    """A forked child shares the open file, and would keep the lock of a parent that died."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)

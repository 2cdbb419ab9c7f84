"""One writer a run, by locks that die with its process."""

import contextlib
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from ..errors import JournalError
from ..files import BINARY
from ..process_lock import LOCKED_FILES_MOVE, is_at, lock
from .run_folder import JOURNAL_FILE, LOCK_FILE

_held: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


class RunLock:
    """Exclusive locks on ``journal.lock`` in the run folder and on the journal itself.

    The file of its own keeps the lock meaningful while the journal is replaced by a rename. The
    journal's keeps it meaningful when that file is deleted, or when another folder leads to the
    same journal by a link. (Windows deletes no file that is open, and replaces none, so there
    the first has to do.) The system drops both when the process ends, however it ends.

    Raises:
        JournalError: another writer holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._journal = folder / JOURNAL_FILE
        self._fd = self._journal_fd = -1
        try:
            self._fd = self._open(self._path, os.O_CREAT)
            self.cover_journal()
        except BaseException:
            self.release()
            raise
        with contextlib.suppress(OSError):
            # It only serves the other writer's message; a full disk may refuse it.
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            os.write(self._fd, b"%d\n" % os.getpid())
        _held.add(self)

    def cover_journal(self) -> None:
        """Lock the journal that is there now, if it is another than before.

        Raises:
            JournalError: another writer holds it.
        """
        if not LOCKED_FILES_MOVE or not self._journal.exists():
            return
        if self._journal_fd < 0 or not is_at(self._journal_fd, self._journal):
            found = self._open(self._journal, 0)
            if self._journal_fd >= 0:
                os.close(self._journal_fd)
            self._journal_fd = found

    def release(self) -> None:
        """Let the next writer in. Calling it again does nothing."""
        for descriptor in (self._journal_fd, self._fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd = self._journal_fd = -1

    def _open(self, path: Path, flags: int) -> int:
        """Open and lock a file that is still there once it is locked."""
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | BINARY | flags, 0o600)
            except OSError as error:
                raise JournalError(f"{path}: cannot write here ({error.strerror})") from None
            try:
                if not lock(descriptor):
                    raise JournalError(
                        f"{path}: another writer has this run (process {self._holder()}); "
                        "stop it, or branch into a folder of your own"
                    )
                if is_at(descriptor, path):
                    return descriptor
            except OSError as error:
                os.close(descriptor)
                raise JournalError(f"{path}: cannot be locked ({error.strerror})") from None
            except JournalError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _holder(self) -> str:
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            return file.read(32).decode(errors="replace").strip() or "unknown"
        return "unknown"


def _drop_in_child() -> None:
    """A forked child shares the open files, and would keep the locks of a parent that died."""
    for held in list(_held):
        held.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)


@contextlib.contextmanager
def locked(folder: Path | str) -> Iterator[Path]:
    """The journal's path while holding the run's lock.

    Raises:
        JournalError: there is no journal, or another writer holds it.
    """
    path = Path(folder) / JOURNAL_FILE
    if not os.path.isfile(path):
        raise JournalError(f"{path}: no such journal")
    lock = RunLock(path.parent)
    try:
        yield path
    finally:
        lock.release()

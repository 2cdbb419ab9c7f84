"""Where seedtune keeps what it made, and how files and folders are replaced: old or new, never
half, and nothing of a killed process stays for ever."""

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import SeedtuneError
from .process_lock import LOCKED_FILES_MOVE, is_at, lock

_WORK = ".seedtune-work"
_LOCK, _NEW, _REPLACED = "lock", "new", "replaced"
BINARY: int = getattr(os, "O_BINARY", 0)
"""Flag of ``os.open`` that Windows needs to leave bytes alone."""


def default_cache() -> Path:
    """``$SEEDTUNE_CACHE``, or ``seedtune`` in the user's cache folder."""
    own = os.environ.get("SEEDTUNE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seedtune"


def check_output(output: Path, *inputs: Path) -> None:
    """Refuse to write over what is read, before anything is.

    Args:
        output: file or folder to be written.
        inputs: files, and folders in which nothing may change.

    Raises:
        SeedtuneError: one would be replaced, or changed; the message names it.
    """
    place = Path(os.path.realpath(output))
    for source in inputs:
        read = Path(os.path.realpath(source))
        if place == read or read in place.parents:
            raise SeedtuneError(f"{output}: would change {source}, which is read; name another")


def replace_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` to ``path`` as ``replacing`` does."""
    with replacing(path, private=private) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A file to write, in a ``workplace`` of ``path``; at the end it is synced and takes its place.

    Any number of processes may do so at once: the last one's file stays.

    Args:
        private: only this user may read it.

    Raises:
        OSError: the folder cannot be written; ``path`` is as it was.
    """
    with workplace(path) as work:
        temporary = work / _NEW
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600 if private else 0o666))
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    sync_folder(path.parent)


def place_hashed(new: Path, file: Path) -> None:
    """Move ``new``, inside a ``workplace`` of ``file``, to ``file``, and its SHA-256 beside it.

    Raises:
        OSError: it could not be moved; what is at ``file`` is whole or passes for damaged.
    """
    with open(new, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _hash_file(new).write_text(digest, encoding="ascii")
    for made, place in ((new, file), (_hash_file(new), _hash_file(file))):
        sync_file(made)
        os.replace(made, place)
    sync_folder(file.parent)


def is_whole(file: Path) -> bool:
    """Whether ``place_hashed`` put ``file`` there and every byte is as it was then."""
    try:
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return _hash_file(file).read_bytes() == digest.encode()
    except OSError:
        return False


def _hash_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, renames) to the disk, where a folder can be opened."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Put a folder's files and folders on the disk, before a rename makes them visible."""
    for file in folder.iterdir():
        if file.is_dir():
            sync_tree(file)
            continue
        sync_file(file)
    sync_folder(folder)


def sync_file(file: Path) -> None:
    """Put a file on the disk, before a rename makes it visible."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


@contextlib.contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to make it in, gone at the end.

    Those that killed processes left in the same parent are removed first (see ``clean_up``).

    Raises:
        OSError: the parent cannot be written, or ``target`` is ``.`` or ``/`` or the like.
    """
    if target.name in ("", ".."):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    clean_up(target.parent)
    while True:
        work = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_WORK}")
        work.mkdir(mode=0o700)
        held = -1
        try:
            held = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if lock(held) and is_at(held, work / _LOCK):
                break
        except FileNotFoundError:
            pass  # somebody who cleaned up took the folder for a dead process's
        if held >= 0:
            os.close(held)
    try:
        yield work
    finally:
        _dismantle(work, target, held)


def workplaces(parent: Path) -> list[Path]:
    """Work folders of processes that write in ``parent``, and those that killed ones left."""
    return sorted(parent.glob(f".*{_WORK}"))


def clean_up(parent: Path) -> None:
    """Remove the workplaces of dead processes in ``parent``; put back what one had half replaced.

    A process that lives holds a lock in its own, and keeps it.
    """
    for work in workplaces(parent):
        with contextlib.suppress(OSError):
            try:
                held = os.open(work / _LOCK, os.O_RDWR)
            except FileNotFoundError:
                work.rmdir()  # killed before it had its lock, or when all else was removed
                continue
            if lock(held):
                name = work.name.removeprefix(".").removesuffix(_WORK).rpartition(".")[0]
                _dismantle(work, parent / name, held)
            else:
                os.close(held)


def _dismantle(work: Path, target: Path, held: int) -> None:
    """Remove a workplace whose lock ``held`` is; what stood at ``target`` goes back there first."""
    if (work / _REPLACED).exists() and not target.exists():
        try:
            os.rename(work / _REPLACED, target)
        except OSError:
            os.close(held)
            return  # rather keep it where it is than lose it
    for child in list(work.iterdir()) if work.exists() else ():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child.name != _LOCK:
            with contextlib.suppress(OSError):
                child.unlink()
    os.close(held)
    with contextlib.suppress(OSError):
        (work / _LOCK).unlink()
        work.rmdir()


def replace_folder(new: Path, folder: Path) -> None:
    """Move ``new``, inside a ``workplace`` of ``folder``, to where ``folder`` may be already.

    Whoever looks, also after a kill, finds all of the old one or all of the new one: Linux and
    macOS swap them in one step. Elsewhere there is a moment without either, which ``clean_up``
    ends. The folders are to be synced already; their parent is here.

    Raises:
        OSError: it could not be moved; ``folder`` is as it was.
    """
    if not folder.exists():
        os.rename(new, folder)
    elif not _swap(new, folder):
        old = new.parent / _REPLACED
        os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.rename(old, folder)
            raise
    sync_folder(folder.parent)


def place_folder(new: Path, folder: Path) -> None:
    """Move ``new``, inside a ``workplace`` of ``folder``, to where nothing stands, or an empty
    folder: what else is there, or came there meanwhile, stays.

    Raises:
        OSError: something is there, or it could not be moved.
    """
    if not LOCKED_FILES_MOVE and folder.exists():
        folder.rmdir()
    os.rename(new, folder)
    sync_folder(folder.parent)


def kept_folder(folder: Path, make: Callable[[Path, Path], None]) -> Path:
    """``folder``, made first where it is not there: whole, or not at all.

    Args:
        folder: its name must change with whatever the content depends on.
        make: called with the folder to fill, which is empty, and another for scratch files.

    Raises:
        OSError: it cannot be made.
    """
    clean_up(folder.parent)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with workplace(folder) as work:
        content, scratch = work / "content", work / "scratch"
        content.mkdir()
        scratch.mkdir()
        make(content, scratch)
        try:
            place_folder(content, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder


def _swap(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    if not LOCKED_FILES_MOVE:  # Windows
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        failed = libc.renamex_np(*names, 2)  # RENAME_SWAP
    elif hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        failed = libc.renameat2(here, names[0], here, names[1], 2)  # RENAME_EXCHANGE
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))

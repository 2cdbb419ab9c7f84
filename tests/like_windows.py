"""What Python has and does on Windows, as far as files and processes go, on another system.

A pytest plugin (``-p like_windows``), or ``become()`` before seedtune is imported. Without
``fcntl`` and what else is missing there; with msvcrt's lock of one byte; folders cannot be opened,
open files neither be deleted nor replaced, and a rename replaces nothing.
"""

import fcntl
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 (these use what is taken away, which is not the question)
import pytest
import safetensors.numpy  # noqa: F401
import tokenizers  # noqa: F401

_ABSENT = (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "chown", "fchmod", "fdatasync", "getloadavg",
    "killpg", "mkfifo", "pread", "pwrite", "register_at_fork", "sched_getaffinity", "setsid",
    "statvfs", "sync",
)  # fmt: skip
_ABSENT_SIGNALS = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "setitimer", "alarm")


def become() -> None:
    """Change this process, for good."""
    real_flock, busy = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1) and os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 30
        try:
            real_flock(descriptor, busy)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    for module in ("fcntl", "resource", "pwd", "grp"):
        sys.modules[module] = None
    for name in _ABSENT:
        delattr(os, name)
    for name in _ABSENT_SIGNALS:
        delattr(signal, name)
    _wrap("open", _refuse_folders)
    for name in ("unlink", "remove", "rmdir"):
        _wrap(name, _refuse_open)
    _wrap("replace", _refuse_open_both)
    _wrap("rename", _refuse_existing)


def _wrap(name: str, check: Callable[..., None]) -> None:
    real = getattr(os, name)

    def call(*arguments: Any, **more: Any) -> Any:
        if "dir_fd" not in more and "src_dir_fd" not in more:
            check(*arguments)
        return real(*arguments, **more)

    setattr(os, name, call)


def _refuse_folders(path: Any, *more: Any) -> None:
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))


def _refuse_open(path: Any) -> None:
    found = os.path.realpath(path)
    own = Path("/proc/self/fd")
    for name in os.listdir(own):
        try:
            target = os.readlink(own / name)
        except OSError:
            continue
        if target == found or target.startswith(found + os.sep):
            raise PermissionError(13, "the file is open in a process", str(path))


def _refuse_open_both(source: Any, target: Any) -> None:
    _refuse_open(source)
    if os.path.isdir(target):
        raise PermissionError(13, "Permission denied", str(target))
    _refuse_open(target)


def _refuse_existing(source: Any, target: Any) -> None:
    if os.path.lexists(target):
        raise FileExistsError(17, "file exists", str(target))
    _refuse_open(source)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before any of them imports seedtune. Tests that fork or link say nothing of Windows."""
    become()

    def no(*arguments: object, **more: object) -> None:
        pytest.skip("not on Windows")

    for name in ("fork", "link"):
        setattr(os, name, no)

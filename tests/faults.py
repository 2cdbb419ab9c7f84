"""Fault injection for any test: real kills, damaged bytes, full and read-only disks, NaN losses.

Everything here is either real (SIGKILL, a mounted file system that is full or read-only) or pure
(bytes in, damaged bytes out). What the machine does not allow, skips the test with the reason.
"""

import builtins
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from seedtune.runtime import files
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.tasks import Batch


def run_and_kill(work: Callable[[], object], delay: float | None) -> bool:
    """Run ``work`` in a forked process and kill it with SIGKILL after ``delay`` seconds; with None
    it is left to kill itself.

    Returns:
        Whether it was killed; False if it had finished by itself. Fails the test if ``work`` fails.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ready, started = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.write(started, b"x")
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"in the forked process: {error!r}\n".encode())
        finally:
            os._exit(code)  # no pytest, no atexit handlers of the parent
    os.close(started)
    os.read(ready, 1)  # the delay counts from where the work begins
    os.close(ready)
    if delay is not None:
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return False


def killed_at_call(
    work: Callable[[], object], number: int, *, before: bool, opening: bool = False
) -> bool:
    """Run ``work`` in a forked process that is killed at call ``number`` (from 0) of those that
    change names or sync (and, where wanted, of those that open a file or close one that was
    written), before or after it does so.

    Returns:
        Whether it was killed; False if ``work`` makes fewer calls.
    """

    def counted() -> None:
        left = number

        def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0 and before:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*arguments, **more)
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        names = ("rename", "replace", "mkdir", "rmdir", "unlink", "fsync")
        for name in (*names, *(("open", "close") if opening else ())):
            setattr(os, name, wrap(getattr(os, name)))
        if opening:
            builtins.open = io.open = wrap(open)
        files._swap = wrap(files._swap)
        work()

    return run_and_kill(counted, None)


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """``data`` with one random fault, and what it was."""
    kind = rng.choice(
        ["truncate", "flip bit", "set byte", "zero tail", "garbage", "drop", "repeat"]
    )
    at = rng.randrange(len(data))
    if kind == "truncate":
        return f"cut to {at} bytes", data[:at]
    if kind == "flip bit":
        bit = rng.randrange(8)
        return f"bit {bit} of byte {at}", _put(data, at, bytes([data[at] ^ 1 << bit]))
    if kind == "set byte":
        value = (data[at] + rng.randrange(1, 256)) % 256
        return f"byte {at} set to {value}", _put(data, at, bytes([value]))
    length = rng.randrange(1, 64)
    if kind == "zero tail":
        return f"{length} zeros appended", data + bytes(length)
    if kind == "garbage":
        return f"{length} random bytes at {at}", _put(data, at, rng.randbytes(length))[: len(data)]
    if kind == "drop":
        return f"{length} bytes dropped at {at}", data[:at] + data[at + length :]
    return f"{length} bytes repeated at {at}", data[:at] + data[at : at + length] + data[at:]


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes mounted on ``folder``; skips where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk that ``folder`` is on with one file."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """``folder`` on a read-only file system (root writes to whatever the mode bits say).

    The folder is bind-mounted onto itself, so its content stays visible.
    """
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command on this machine")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@contextlib.contextmanager
def failing_writes(monkeypatch: pytest.MonkeyPatch, error: int, partial: int) -> Iterator[None]:
    """Let ``os.write`` fail with an errno, the first time after ``partial`` bytes have gone through
    (a disk that fills up in the middle of a record)."""
    real, room = os.write, partial

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        taken, room = room, 0
        if taken:
            return real(fd, data[:taken])
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        yield


class NanEngine(Engine):
    """An engine whose results are not numbers in the calls that ``when(call number)`` names."""

    def __init__(self, engine: Engine, when: Callable[[int], bool], *, probe: int | None = None):
        self._engine, self._when, self._probe = engine, when, probe
        self.entries, self.hidden_width = engine.entries, engine.hidden_width
        self.adapter_shape, self.terms_shapes = engine.adapter_shape, engine.terms_shapes
        self.calls = 0

    def score(self, batch: Batch, values: NDArray[np.float32], *more: Any, **how: Any) -> Scores:
        """As the engine's, with NaN in one probe or in all."""
        scores = self._engine.score(batch, values, *more, **how)
        self.calls += 1
        if self._when(self.calls):
            scores.logp[slice(None) if self._probe is None else self._probe] = np.nan
        return scores

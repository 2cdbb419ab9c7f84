"""Gives back memory that nobody will use again: pages of a mapped file, and what was freed.

A model file is mapped as a whole: one norm that is still in use keeps all of it in place, and every
page of it that was ever read counts as this process's memory to its end.
"""

import ctypes
import mmap
import os
from pathlib import Path

import torch

_DONTNEED = 4
_MAPS = Path("/proc/self/maps")


def forget(weight: torch.Tensor) -> None:
    """Let go of the pages of ``weight``, if they are a file's: reading them brings them back.

    Pages that it shares with a neighbour stay, and so does everything where the system does not
    tell what is mapped (elsewhere than on Linux).
    """
    if weight.is_contiguous():
        forget_bytes(weight.data_ptr(), weight.numel() * weight.element_size())


def forget_bytes(address: int, size: int) -> None:
    """``forget`` of what lies at ``address``."""
    page = mmap.PAGESIZE
    begin, end = -(-address // page) * page, (address + size) // page * page
    if begin < end and _of_a_file(begin, end):
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(_DONTNEED)
        )


def _of_a_file(begin: int, end: int) -> bool:
    """Whether these addresses lie in one mapping of a file that is still there."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split(maxsplit=5)
        first, _, last = fields[0].partition("-")
        if int(first, 16) <= begin and end <= int(last, 16):
            return len(fields) == 6 and fields[5].startswith("/") and "(deleted)" not in fields[5]
    return False


def give_back_freed() -> None:
    """Let go of what was freed and what the C library keeps for later: after a profile or a pass
    over the calibration text hundreds of megabytes. Without effect where it cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))

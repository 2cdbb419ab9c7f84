"""An int4 matrix where a program's file has it: codes and scales, made float32 in part or whole."""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle.text_head import WORDS_GROUP

_HALVES = (np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1) - 8).astype(np.float32)
_PAIRS = _HALVES.view(np.uint64)[:, 0]
"""The two codes of a byte, float32, as one number: taken a quarter faster than as two."""


def unpacked(codes: NDArray[np.uint8], scales: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 ``[out, in]`` of codes uint8 ``[out, in / 2]``, the first of two in the lower half, 8
    for zero, and scales ``[out, in / 32]``, bfloat16 as uint16."""
    exact = (scales.astype(np.uint32) << 16).view(np.float32)
    groups = np.take(_PAIRS, codes).view(np.float32).reshape(*exact.shape, WORDS_GROUP)
    groups *= exact[:, :, None]
    return groups.reshape(len(codes), 2 * codes.shape[1])


class WeightsFile:
    """A program's file, mapped."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def int4(
        self, codes: int, scales: int, shape: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Codes and scales of a matrix of this shape, from these bytes on, which may be odd."""
        out, width = shape
        found = np.frombuffer(self._held, np.uint8, out * width // 2, codes)
        scale = np.frombuffer(self._held, "<u2", out * width // WORDS_GROUP, scales)
        return found.reshape(out, width // 2), scale.reshape(out, width // WORDS_GROUP)

    def floats(self, first: int, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Float32 numbers, likewise."""
        found = np.frombuffer(self._held, "<f4", shape[0] * shape[1], first)
        return found.reshape(shape)

    def give_back(self) -> None:
        """Let the system take the pages that were read, which come back when they are read again:
        else all weights would count as this process's memory, beside the program's own."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._held.madvise(mmap.MADV_DONTNEED)

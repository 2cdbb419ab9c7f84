"""Where the bytes of a tensor lie in a file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError

from .mapped_pages import forget_bytes

_NEEDLE, _BLOCK = 64, 1 << 24


def tensor_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Those of a contiguous tensor, where they are."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def find_bytes(wanted: npt.NDArray[np.uint8], file: Path, start: int = 0) -> Iterator[int]:
    """Every place of ``wanted`` in ``file``, from the byte ``start`` on first.

    In blocks, each of which is given back: a mapped file would come into memory as a whole.

    Raises:
        OSError: ``file`` cannot be read.
    """
    held = np.memmap(file, np.uint8, "r")
    needle = wanted[:_NEEDLE].tobytes()
    for begin in (*range(start, held.size, _BLOCK), *range(0, start, _BLOCK)):
        block = held[begin : begin + _BLOCK + len(needle) - 1]
        content = block.tobytes()
        forget_bytes(block.ctypes.data, block.size)
        at = content.find(needle)
        while at >= 0:
            if _equal(held[begin + at : begin + at + wanted.size], wanted):
                yield begin + at
            at = content.find(needle, at + 1)


def placed_bytes(wanted: npt.NDArray[np.uint8], file: Path, what: str, start: int = 0) -> int:
    """The first of these places; ``what`` names the weights in errors.

    Raises:
        ModelError: ``file`` does not hold them.
        OSError: it cannot be read.
    """
    found = next(find_bytes(wanted, file, start), None)
    if found is None:
        raise ModelError(f"{file.name}: does not hold {what} as they were rounded")
    return found


def _equal(there: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8]) -> bool:
    """In blocks, too, of both, since what is wanted may be mapped as well: of a head of 394 million
    weights, both and the answer for each byte were 0.6 GB."""
    if there.size != wanted.size:
        return False
    for begin in range(0, wanted.size, _BLOCK):
        blocks = there[begin : begin + _BLOCK], wanted[begin : begin + _BLOCK]
        same = np.array_equal(*blocks)
        for block in blocks:
            forget_bytes(block.ctypes.data, block.nbytes)
        if not same:
            return False
    return True

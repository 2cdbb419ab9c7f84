"""A safetensors file written tensor by tensor: the library's own writer wants all of them at once
and makes another copy. And where the tensors of one lie, which its reader does not tell, or those
of any file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.errors import ModelError

from .mapped_pages import forget_bytes

_NEEDLE, _BLOCK = 64, 1 << 24
_NAMES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Wide ones first, as the library orders them: so all are aligned."""
_ORDER = list(_NAMES)


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """``dtype``, ``shape`` and ``data_offsets`` of each tensor, and the place in ``file`` that
    offsets count from."""
    with file.open("rb") as source:
        size = int.from_bytes(source.read(8), "little")
        header: dict[str, Any] = json.loads(source.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


class Kind(NamedTuple):
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class TensorFile:
    """The header is written at once, tensors follow in any order."""

    def __init__(
        self, file: Path, kinds: Mapping[str, Kind], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Open ``file`` for tensors of these names.

        Raises:
            OSError: it cannot be written.
        """
        header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
        self.offsets: dict[str, int] = {}
        """In the file, by name."""
        end = 0
        for name in sorted(kinds, key=lambda name: (_ORDER.index(kinds[name].dtype), name)):
            kind = kinds[name]
            self.offsets[name], end = end, end + kind.bytes
            header[name] = {
                "dtype": _NAMES[kind.dtype],
                "shape": kind.shape,
                "data_offsets": [self.offsets[name], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        for name in self.offsets:
            self.offsets[name] += 8 + len(text)
        self._sink = file.open("wb")
        self._sink.write(len(text).to_bytes(8, "little") + text)
        self._sink.truncate(8 + len(text) + end)

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
        """Put a tensor, or its bytes, into its place.

        Raises:
            OSError: there is no room.
        """
        self._sink.seek(self.offsets[name])
        self._sink.write(np.ascontiguousarray(data).data)

    def close(self) -> None:
        self._sink.close()


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

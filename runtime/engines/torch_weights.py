"""A torch program's tensors, mapped from a bundle's files."""

import math
import mmap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .torch_operators import DTYPES

_PAGE = mmap.PAGESIZE
_LARGE = 1 << 18
"""Bytes of a tensor whose pages are worth a call of the system."""


class Weights(Mapping[str, torch.Tensor]):
    """Tensors of the files, by name, mapped until they are moved to a GPU."""

    def __init__(self, table: dict[str, Any], files: Mapping[str, Path]) -> None:
        """Map what ``table`` names; nothing is read."""
        maps = {name: _mapped(path) for name, path in files.items()}
        self._tensors: dict[str, torch.Tensor] = {}
        self._pages: dict[str, tuple[mmap.mmap, int, int]] = {}
        self.bytes = 0
        for name, (dtype_name, shape, file, offset) in table.items():
            dtype = DTYPES[dtype_name]
            if any(type(size) is not int or size < 1 for size in shape):
                raise ValueError(f"tensor {name} has the shape {shape!r:.80}")
            count = math.prod(shape)
            size = count * dtype.itemsize
            held = maps[file]
            if offset % dtype.itemsize or not 0 <= offset <= len(held) - size:
                raise ValueError(f"tensor {name} lies outside {file}")
            self.bytes += size
            self._tensors[name] = _view(held, dtype, count, offset).view(shape)
            if size >= _LARGE:
                first = offset // _PAGE * _PAGE
                self._pages[name] = (held, first, offset + size - first)

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest int4 matrix."""
        codes = [each for each in self._tensors.values() if each.dtype is torch.uint8]
        return max((2 * each.numel() for each in codes), default=0)

    def on(self, device: torch.device) -> "Weights":
        """Itself, on ``device``."""
        if device.type != "cpu":
            self._tensors = {name: each.to(device) for name, each in self._tensors.items()}
            self._pages.clear()
        return self

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def give_back(self, name: str) -> None:
        """Let the system take the pages of a large tensor, which come back when it is read."""
        pages = self._pages.get(name)
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            held, first, size = pages
            held.madvise(mmap.MADV_DONTNEED, first, size)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _view(held: mmap.mmap, dtype: torch.dtype, count: int, offset: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it must not be written to
        return torch.frombuffer(held, dtype=dtype, count=count, offset=offset)

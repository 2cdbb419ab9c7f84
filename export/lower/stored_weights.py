"""Where the tensors of ONNX and torch programs stand: once, in a file that all of them point into.

What ``program.pte`` holds already, the int4 codes above all, stays there: programs point at those
bytes. The rest goes into one safetensors file.
"""

import hashlib
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

from ..model.mapped_pages import forget
from ..model.tensor_file import Kind, TensorFile, find_bytes, tensor_bytes

FILE = "weights.safetensors"
_LEAST = 4096
"""Bytes of a tensor that is looked for in another file: small ones repeat by chance."""
_ALIGNED = 16
"""Bytes that the place of a tensor in a file must divide by, for readers that map it."""


class Place(NamedTuple):
    """Bytes of one file of the bundle."""

    file: str
    offset: int
    bytes: int


class StoredWeights:
    """Collects the tensors of all programs, then says where each stands."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._by_content: dict[object, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> str:
        """Keep a tensor; returns the name to ask for, another's if that has the same content,
        in whatever shape."""
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:  # a part of another
            tensor = tensor.clone()
        content = (tensor.dtype, hashlib.sha256(tensor_bytes(tensor).data).digest())
        forget(tensor)
        if content in self._by_content:
            return self._by_content[content]
        if name in self._tensors:  # one program folded something into it
            name = f"{name}.{len(self._tensors)}"
        self._tensors[name] = tensor
        self._by_content[content] = name
        return name

    def placed(self, other: Path | None, file: Path) -> dict[str, Place]:
        """The place of every tensor by name; those that ``other`` does not hold are written to
        ``file``, which is not made where there are none.

        Args:
            other: a file of the bundle that holds some of them already.

        Raises:
            OSError: ``file`` cannot be written.
        """
        places: dict[str, Place] = {}
        if other is not None:
            last = 0
            for name, tensor in self._tensors.items():
                found = _place(tensor, other, last)
                forget(tensor)
                if found is not None:
                    places[name] = Place(other.name, found, tensor.nbytes)
                    last = found
        left = {name: tensor for name, tensor in self._tensors.items() if name not in places}
        if not left:
            return places
        kinds = {name: Kind(each.dtype, tuple(each.shape)) for name, each in left.items()}
        with closing(TensorFile(file, kinds)) as written:
            for name, tensor in left.items():
                written.write(name, tensor_bytes(tensor))
                forget(tensor)
        for name, tensor in left.items():
            places[name] = Place(FILE, written.offsets[name], tensor.nbytes)
        return places


def _place(tensor: torch.Tensor, other: Path, start: int) -> int | None:
    """Where ``other`` has the bytes of a tensor; from ``start`` on first, since files of one model
    have about the same order."""
    if tensor.nbytes < _LEAST:
        return None
    found = find_bytes(tensor_bytes(tensor), other, start)
    return next((at for at in found if at % _ALIGNED == 0), None)

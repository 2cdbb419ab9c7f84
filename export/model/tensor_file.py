"""A safetensors file written tensor by tensor: the library's own writer wants all of them at once
and makes another copy. And where the tensors of one lie, which its reader does not tell."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

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

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

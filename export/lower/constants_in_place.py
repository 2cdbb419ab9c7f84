"""Constants that a program's file is written from, where they lie.

executorch makes bytes of each constant for each method, and then sees that another method had it
already: an embedding stood in memory three times when the file was put together. Here a constant is
named by a hash of its own memory and goes from there into the file.
"""

import contextlib
import ctypes
import functools
import hashlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from executorch.exir._serialize._cord import FileBackedData
from executorch.exir.emit import _emitter


class InPlace(FileBackedData):  # type: ignore[misc]
    """Bytes of an array, written from where they lie."""

    def __init__(self, content: npt.NDArray[np.uint8]) -> None:
        self.content = content

    def __len__(self) -> int:
        return self.content.nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> "InPlace":
        return self  # a program is copied once more before it is written

    def prefix(self, size: int) -> bytes:
        return self.content.reshape(-1)[:size].tobytes()

    @functools.cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(self.content.data).digest()

    def sha256(self) -> bytes:
        return self.digest

    def to_bytes(self) -> bytes:
        return self.content.tobytes()

    def write_to_file(self, outfile: Any) -> None:
        outfile.write(self.content.data)


@contextlib.contextmanager
def constants_in_place() -> Iterator[None]:
    """Inside, what executorch emits holds constants where they are; the programs that they belong
    to must stay until the file is written."""

    def kept(data: Any) -> Any:
        if not isinstance(data, ctypes.Array):
            return bytes(data)
        return InPlace(np.frombuffer(memoryview(data), np.uint8))

    def sha256(data: Any) -> Any:
        return hashlib.sha256(data.content.data if isinstance(data, InPlace) else data)

    with (
        patch.object(_emitter, "bytes", kept, create=True),  # a module's own name goes first
        patch.object(_emitter, "hashlib", SimpleNamespace(sha256=sha256)),
    ):
        yield

"""What travels: mappings of text, numbers and bytes; arrays as little-endian bytes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model import Model

Question = dict[str, Any]
"""From the server: ``kind``, ``fleet`` (see ``identity``), ``round``, ``devices`` that are asked,
and what the kind needs."""
Answer = dict[str, Any]
"""From a device: ``fleet`` and ``round`` as asked, ``rows`` behind it, and what the kind gives."""


def identity(model: Model) -> str:
    """SHA-256 (hex) of the bundle and the task: whose numbers belong together."""
    spec = json.dumps([model.bundle.sha256, model.task_spec], sort_keys=True)
    return hashlib.sha256(spec.encode()).hexdigest()


def packed(array: NDArray[Any]) -> bytes:
    """An array's bytes, little-endian, in order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def unpacked(message: Mapping[str, Any], name: str, dtype: str, *shape: int) -> NDArray[Any]:
    """Inverse of ``packed``, a copy.

    Raises:
        ValueError: not there, of another size, or a number that is not finite; names the field.
    """
    data = message.get(name)
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else "no bytes"
        raise ValueError(f"field {name} has {found}, not {wanted}")
    array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
    if not np.isfinite(array).all():
        raise ValueError(f"field {name} holds a number that is not finite")
    return array


def size(message: Mapping[str, Any]) -> int:
    """Bytes of a message's content, eight a number."""
    return sum(len(value) if isinstance(value, (bytes, str)) else 8 for value in message.values())

"""Tuned values as a file: float16 safetensors, laid out as a bundle's ``values.safetensors``.

A part's numbers stand beside them as ``own``, in float32, and its description in the metadata.

The metadata name the bundle, the step and ``content_sha256``: the SHA-256 of the other metadata and
of each tensor's name, dtype, shape and bytes. Loading checks them, so that neither damage nor
another model's values pass.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ..bundle import Bundle
from ..errors import BundleError, TuningError
from ..files import replace_file
from ..hub import local_file
from ..schema import SHA256, MapOf, Text, check, parse_json
from .part import PartKind
from .parts import restored
from .values import Values

_FORMAT = "seedtune-values"
_METADATA = {
    "format": str,
    "bundle_sha256": SHA256,
    "step": Text("[0-9]{1,15}", "a number"),
    "float32_sha256": SHA256,
    "part": str,
}
"""Beside ``content_sha256``."""
_LARGEST_OWN = 1 << 28


def export_values(path: Path | str, values: Values, bundle: Bundle, *, step: int) -> str:
    """Write values, atomically. With a part only this user may read the file: it may hold the
    user's words.

    Args:
        step: the step that they are of, noted in the file's metadata with their float32 hash.

    Returns:
        SHA-256 of the float16 values' bytes.

    Raises:
        TuningError: a value exceeds float16.
        BundleError: the file cannot be written.
    """
    with np.errstate(over="ignore"):
        half = values.sensitive.astype(np.float16)
    if not np.isfinite(half).all():
        place = int(np.flatnonzero(~np.isfinite(half))[0])
        raise TuningError(
            f"{path}: value {place} is {values.sensitive[place]:g}, beyond float16; "
            "rewind to an earlier step and lower lr"
        )
    part = values.part
    metadata = {
        "format": _FORMAT,
        "bundle_sha256": bundle.sha256,
        "step": str(step),
        "float32_sha256": values.sha256,
        "part": "" if part is None else json.dumps(part.description),
    }
    tensors: dict[str, NDArray[Any]] = {"values": half, "indices": np.array(bundle.indices)}
    if part is not None:
        tensors["own"] = part.own
    metadata["content_sha256"] = _content_sha256(tensors, metadata)
    data = _ordered(save_safetensors(tensors, metadata))
    try:
        replace_file(Path(path), data, private=part is not None)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror})") from None
    return hashlib.sha256(half.tobytes()).hexdigest()


def load_values(path: Path | str, bundle: Bundle, kinds: Mapping[str, PartKind]) -> Values:
    """Values that ``export_values`` wrote.

    Args:
        path: a file here or on the hub (see ``hub``).
        kinds: of parts on ``bundle`` (see ``parts.kinds_of``).

    Raises:
        BundleError: unreadable, damaged, or not of this bundle.
        DownloadError: the hub does not deliver it.
    """
    file = local_file(path)
    try:
        size = file.stat().st_size
        # Values and places; a part; the header.
        if size > bundle.K * 10 + _LARGEST_OWN + (1 << 20):
            raise BundleError(f"{path}: has {size} bytes, more than any values of {bundle.path}")
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        tensors, metadata = _parse(data)
    except ValueError as error:
        raise BundleError(f"{path}: not a values file, or damaged ({error})") from None
    if metadata["bundle_sha256"] != bundle.sha256:
        raise BundleError(
            f"{path}: holds values of bundle {metadata['bundle_sha256'][:12]}..., "
            f"not of {bundle.path} ({bundle.sha256[:12]}...)"
        )
    values, indices = tensors["values"], tensors["indices"]
    own = tensors.get("own", np.zeros(0, np.float32))
    if values.dtype != np.float16 or not np.array_equal(indices, bundle.indices):
        raise BundleError(f"{path}: holds values of other entries than {bundle.path}")
    if values.shape != indices.shape or own.dtype != np.float32:
        raise BundleError(f"{path}: damaged: its tensors have other forms than values have")
    if not (np.isfinite(values).all() and np.isfinite(own).all()):
        raise BundleError(f"{path}: holds values that are not finite")
    try:
        part = restored(kinds, parse_json((metadata["part"] or "null").encode()), own)
    except ValueError as error:
        raise BundleError(f"{path}: its part makes no sense here: {error}") from None
    return Values(values.astype(np.float32), part)


def _parse(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata, checked against their own hash; ValueError where that fails."""
    length = int.from_bytes(data[:8], "little")
    header = parse_json(data[8 : 8 + length], most=1 << 20)
    check(header, {"__metadata__": MapOf(str)})
    metadata: dict[str, str] = header["__metadata__"]
    check(metadata, {**_METADATA, "content_sha256": SHA256})
    if metadata["format"] != _FORMAT or len(metadata) > len(_METADATA) + 1:
        raise ValueError("its metadata are not those of values")
    try:
        tensors: dict[str, NDArray[Any]] = load_safetensors(data)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    if set(tensors) != {"values", "indices"} | ({"own"} if metadata["part"] else set()):
        raise ValueError(f"holds {sorted(tensors)}")
    if metadata["content_sha256"] != _content_sha256(tensors, metadata):
        raise ValueError("its SHA-256 differs; export the values again")
    return tensors, metadata


def _ordered(data: bytes) -> bytes:
    """The same file with its header's fields by name, which the library leaves to chance: equal
    values are equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":"))
    padded = header.encode() + b" " * (-len(header.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + data[8 + length :]


def _content_sha256(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(_METADATA):
        digest.update(f"{name}={metadata[name]}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype.str}{list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()

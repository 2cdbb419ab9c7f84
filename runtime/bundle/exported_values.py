"""Tuned values as a file: float16 safetensors, laid out as a bundle's ``values.safetensors``.

Weights that an estimator put behind them stand beside them as ``own``, in float32.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ..errors import BundleError, TuningError
from ..files import replace_file
from .bundle import Bundle


def values_sha256(values: NDArray[np.float32]) -> str:
    """SHA-256 (hex) of float32 values as little-endian bytes: what ``verify`` and friends print."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").data).hexdigest()


def export_values(
    path: Path | str, values: NDArray[np.float32], bundle: Bundle, *, step: int
) -> str:
    """Write values (float32 ``[K]``, or with an estimator's own weights behind them), atomically.

    Args:
        step: the step that they are of, noted in the file's metadata with their float32 hash.

    Returns:
        SHA-256 of the float16 values' bytes.

    Raises:
        TuningError: a value exceeds float16.
        BundleError: the file cannot be written.
    """
    with np.errstate(over="ignore"):
        half = values[: bundle.K].astype(np.float16)
    if not np.isfinite(half).all():
        place = int(np.flatnonzero(~np.isfinite(half))[0])
        raise TuningError(
            f"{path}: value {place} is {values[place]:g}, beyond float16; "
            "rewind to an earlier step and lower lr"
        )
    metadata = {
        "format": "seedtune-values",
        "bundle_sha256": bundle.sha256,
        "step": str(step),
        "float32_sha256": values_sha256(values),
    }
    tensors: dict[str, NDArray[Any]] = {"values": half, "indices": np.array(bundle.indices)}
    if len(values) > bundle.K:
        tensors["own"] = values[bundle.K :]
    data = save_safetensors(tensors, metadata)
    try:
        replace_file(Path(path), data)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror})") from None
    return hashlib.sha256(half.tobytes()).hexdigest()


def load_values(path: Path | str, bundle: Bundle) -> NDArray[np.float32]:
    """Values that ``export_values`` wrote, as float32, an estimator's own weights behind them.

    Raises:
        BundleError: unreadable, or not of this bundle's entries.
    """
    try:
        tensors = load_safetensors(Path(path).read_bytes())
        values, indices = tensors["values"], tensors["indices"]
        others = [tensor for name, tensor in tensors.items() if name not in ("values", "indices")]
        own = others[0] if others else np.zeros(0, np.float32)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except (SafetensorError, KeyError) as error:
        raise BundleError(f"{path}: not a values file ({error})") from None
    if values.dtype != np.float16 or not np.array_equal(indices, bundle.indices):
        raise BundleError(f"{path}: holds values of other entries than {bundle.path}")
    if len(others) > 1 or own.dtype != np.float32 or own.ndim != 1:
        raise BundleError(f"{path}: holds more than values and one row of an estimator's weights")
    whole = np.concatenate([values.astype(np.float32), own])
    if not np.isfinite(whole).all():
        raise BundleError(f"{path}: holds values that are not finite")
    return whole

"""Reads a part that is one safetensors file of tensors whose names, types and shapes are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import BundleError

Axes = Mapping[str, tuple[type, str]]
"""Type and axes of each tensor, a letter an axis."""


def read_tensors(path: Path, shown: Path, axes: Axes) -> dict[str, NDArray[Any]]:
    """The tensors of these names; ``shown`` names the file in errors.

    Raises:
        BundleError: not such a file.
    """
    try:
        with safe_open(path, "numpy") as file:
            if set(file.keys()) != set(axes):
                raise BundleError(f"{shown}: must hold {sorted(axes)}, holds {sorted(file.keys())}")
            return {name: file.get_tensor(name) for name in axes}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise BundleError(f"{shown}: not a safetensors file ({error})") from error


def check_tensors(
    shown: Path, tensors: Mapping[str, NDArray[Any]], axes: Axes, sizes: Mapping[str, int]
) -> None:
    """See that each has its type, the ``sizes`` of its axes and finite numbers alone. From here on
    they are read-only.

    Raises:
        BundleError: one has not; names it.
    """
    for name, (dtype, letters) in axes.items():
        tensor, shape = tensors[name], tuple(sizes[letter] for letter in letters)
        if tensor.dtype != dtype or tensor.shape != shape:
            raise BundleError(
                f"{shown}: {name} is {tensor.dtype} {list(tensor.shape)}, must be "
                f"{np.dtype(dtype).name} {list(shape)}"
            )
        if not bool(np.isfinite(tensor).all()):
            raise BundleError(f"{shown}: {name} holds numbers that are not finite")
        tensor.setflags(write=False)

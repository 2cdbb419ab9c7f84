"""A few directions that a host learned for a task's prompt, along which a device searches.

With 100 000 values a random direction holds nearly nothing of a task's gradient. But how the answer
reacts to the values can be learned from any text put into the task's prompt, without its data or
labels: on SmolLM2, 16 such directions hold 88 % of SST-2's mean gradient (see
``export.task_basis``). A bundle carries them as int8.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ..errors import BundleError

_FIELDS = {"directions": (np.int8, 2), "scales": (np.float32, 1), "shifts": (np.float32, 1)}


@dataclass(frozen=True)
class Basis:
    """Direction ``j`` is ``scales[j] * directions[j]``."""

    directions: NDArray[np.int8]
    """int8 ``[m, K]``."""
    scales: NDArray[np.float32]
    """float32 ``[m]``, above 0."""
    shifts: NDArray[np.float32]
    """float32 ``[m]``, above 0: root mean square, over the host's texts, of how far the logit of an
    answer moves for one unit along the direction."""

    @property
    def size(self) -> int:
        """Number of directions: m."""
        return len(self.directions)

    def add(self, values: NDArray[np.float32], coefficients: NDArray[np.float64]) -> None:
        """``values += sum_j coefficients[j] * direction_j``, in place, the same bits everywhere.

        Args:
            values: float32 ``[K]``.
            coefficients: float64 ``[n]`` of the first ``n`` directions; each product with its
                scale is rounded to float32 once.
        """
        for number, coefficient in enumerate(coefficients):
            self.add_one(values, number, float(coefficient))

    def add_one(self, values: NDArray[np.float32], number: int, coefficient: float) -> None:
        """``values += coefficient * direction_number``, in place."""
        factor = np.float32(coefficient * float(self.scales[number]))
        values += factor * self.directions[number]

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save_safetensors({name: getattr(self, name) for name in _FIELDS})


def parse_basis(data: bytes, file: Path, entries: int) -> Basis:
    """Inverse of ``Basis.to_bytes``; ``file`` only names the culprit in errors.

    Raises:
        BundleError: not such a file, or its directions are not of ``entries`` values.
    """
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{file}: not a safetensors file ({error})") from error
    if set(tensors) != set(_FIELDS):
        raise BundleError(f"{file}: must hold {sorted(_FIELDS)}, holds {sorted(tensors)}")
    for name, (dtype, axes) in _FIELDS.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.ndim != axes:
            raise BundleError(f"{file}: {name} is {tensor.dtype} with {tensor.ndim} axes")
        if len(tensor) != len(tensors["directions"]) or not len(tensor):
            raise BundleError(f"{file}: {name} has {len(tensor)} directions")
        if dtype == np.float32 and not bool((np.isfinite(tensor) & (tensor > 0)).all()):
            raise BundleError(f"{file}: {name} must be finite and above 0")
        tensor.setflags(write=False)
    if tensors["directions"].shape[1] != entries:
        raise BundleError(
            f"{file}: directions have {tensors['directions'].shape[1]} values, "
            f"the layers add up to {entries}"
        )
    return Basis(**tensors)

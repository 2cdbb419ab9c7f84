"""A head for text that can be learned with a bundle: what the manifest says of it, and what it is
learned in, the part ``text.safetensors``, made from generic text.

A head learned on the device moves what the output head reads by a linear map of hidden states:
``h' = h + A x``, with ``x`` ``[S]`` the token's own tapped states and ``h`` ``[D]``. It is learned
as ``A = size * Qg M Qx'`` in the eigenbases of generic text, of the states (Qx) and of the head's
gradient (Qg): signs of a gradient mean more along those than along the model's own axes. The part
also holds states of generic text and what the untouched head makes of them, which keep the head
from moving where the user's texts do not ask for it.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from ..errors import BundleError
from .tensors import check_tensors, read_tensors

WORDS_GROUP = 32
"""Codes of the output head's int4 weights that share a scale."""
MOST_MOVED = 1 << 24
"""Numbers that a head may have to learn."""


@dataclass(frozen=True)
class WordsPlace:
    """Where the output head's int4 weights lie, word after word, in a program's file."""

    file: str
    codes: int
    """Offset of uint8 ``[V, D / 2]``: two codes a byte, the first in its lower half; 8 is zero."""
    scales: int
    """Offset of bfloat16 ``[V, D / 32]``, little-endian: of each 32 codes."""

    @staticmethod
    def sizes(words: int, width: int) -> tuple[int, int]:
        """Bytes of the codes and of the scales."""
        return words * width // 2, words * (width // WORDS_GROUP) * 2


@dataclass(frozen=True)
class TextHeadInfo:
    """Sizes of the head, and where it finds the words."""

    outputs: int
    """O: directions of what the output head reads along which it moves."""
    inputs: int
    """I: directions of the states that it reads."""
    words: WordsPlace
    softcap: float | None
    """Bound of the logits, ``cap * tanh(logit / cap)``, where the model has one."""

    @property
    def entries(self) -> int:
        """Numbers that are learned."""
        return self.outputs * self.inputs


_AXES = {
    "weight": (np.float32, "D"),
    "shift": (np.float32, "D"),
    "size": (np.float32, ""),
    "inputs": (np.float16, "SI"),
    "outputs": (np.float16, "DO"),
    "states": (np.float16, "GS"),
    "expected": (np.float16, "GO"),
}
"""Type and axes of each tensor."""
_MOST_GENERIC = 1 << 16


@dataclass(frozen=True)
class TextFrame:
    """Tensors of the part. The last block's state is the last D of S."""

    weight: NDArray[np.float32]
    """float32 ``[D]``: of the final norm, as far as it stands behind the unit vector."""
    shift: NDArray[np.float32]
    """float32 ``[D]``, the same; where it is not all zero, the unit vector is that about its mean
    (a layer norm), else about zero (a root mean square norm)."""
    size: NDArray[np.float32]
    """float32 ``[]``: root mean square of what the head reads."""
    inputs: NDArray[np.float16]
    """float16 ``[S, I]``: Qx."""
    outputs: NDArray[np.float16]
    """float16 ``[D, O]``: Qg."""
    states: NDArray[np.float16]
    """float16 ``[G, S]``: of tokens of generic text."""
    expected: NDArray[np.float16]
    """float16 ``[G, O]``: under the untouched head the mean word vector of each, times Qg."""

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save_safetensors({f.name: getattr(self, f.name) for f in fields(self)})

    def read(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the head reads untouched, float32 ``[N, D]``, from states float32 ``[N, S]``."""
        last = states[:, -len(self.weight) :]
        if self.shift.any():
            last = about_mean(last)
        return last * self.weight + self.shift

    @property
    def scales(self) -> NDArray[np.float32]:
        """float32 ``[S]``: what states are multiplied by to be learned from, so that the last one
        counts as the head reads it."""
        scales = np.ones(len(self.inputs), np.float32)
        scales[-len(self.weight) :] = self.weight / self.size
        return scales


def about_mean(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each of ``[N, D]`` less its mean, with root mean square 1."""
    apart = np.asarray(vectors - vectors.mean(axis=1, keepdims=True), np.float32)
    apart /= np.sqrt(np.square(apart).mean(axis=1, keepdims=True))
    return apart


def load_text_frame(
    path: Path, shown: Path, info: TextHeadInfo, adapter: tuple[int, int]
) -> TextFrame:
    """Read the part from ``path``; ``shown`` names it in errors.

    Raises:
        BundleError: not such a file, or of other sizes than ``info`` and the ``adapter`` say.
    """
    tensors = read_tensors(path, shown, _AXES)
    sizes = {"D": adapter[0], "S": adapter[1], "I": info.inputs, "O": info.outputs}
    sizes["G"] = len(tensors["states"]) if tensors["states"].ndim else 0
    if not 1 <= sizes["G"] <= _MOST_GENERIC:
        raise BundleError(f"{shown}: holds states of {sizes['G']} tokens")
    check_tensors(shown, tensors, _AXES, sizes)
    if not float(tensors["size"]) > 0:
        raise BundleError(f"{shown}: size is {float(tensors['size'])}, must be above 0")
    return TextFrame(**tensors)

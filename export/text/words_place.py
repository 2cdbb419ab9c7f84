"""Where the output head's int4 weights lie in a program's file, so that a device can read them
there: kept once, whatever kind of head the model has."""

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle import WordsPlace
from seedtune.runtime.errors import ModelError

from ..quantise.int4 import packed_int4

_NEEDLE = 4096


def packed_words(
    weight: torch.Tensor,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Codes uint8 ``[V, D / 2]`` and scales, bfloat16 as uint16 ``[V, D / 32]``, of a linear that
    was rounded to int4 (see ``packed_int4``)."""
    codes, scales = packed_int4(weight)
    return codes.numpy(), scales.view(torch.int16).numpy().view(np.uint16)


def find_words(
    buffer: bytes, file: str, codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16]
) -> WordsPlace:
    """Where both arrays lie in ``buffer``, the content of the program's ``file``.

    Raises:
        ModelError: they do not.
    """
    return WordsPlace(
        file, _find(buffer, codes.tobytes(), file), _find(buffer, scales.tobytes(), file)
    )


def _find(buffer: bytes, wanted: bytes, file: str) -> int:
    place = buffer.find(wanted[:_NEEDLE])
    while place >= 0:
        if buffer[place : place + len(wanted)] == wanted:
            return place
        place = buffer.find(wanted[:_NEEDLE], place + 1)
    raise ModelError(f"{file}: does not hold the output head's weights as they were rounded")

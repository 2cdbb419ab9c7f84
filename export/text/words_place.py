"""Where the output head's int4 weights lie in a program's file, so that a device can read them
there: kept once, whatever kind of head the model has."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle import WordsPlace
from seedtune.runtime.errors import ModelError
from torch import nn

from ..model.find_bytes import find_bytes
from ..quantise.int4 import packed_weight


def packed_words(
    head: nn.Linear,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Codes uint8 ``[V, D / 2]`` and scales, bfloat16 as uint16 ``[V, D / 32]``, of a linear that
    was rounded to int4 (see ``packed_int4``)."""
    codes, scales = packed_weight(head)
    return codes.numpy(), scales.view(torch.int16).numpy().view(np.uint16)


def find_words(
    file: Path, codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16]
) -> WordsPlace:
    """Where both arrays lie in the program's ``file``.

    Raises:
        ModelError: they do not.
    """
    return WordsPlace(file.name, _find(file, codes), _find(file, scales))


def _find(file: Path, wanted: npt.NDArray[Any]) -> int:
    found = next(find_bytes(wanted.reshape(-1).view(np.uint8), file), None)
    if found is None:
        raise ModelError(
            f"{file.name}: does not hold the output head's weights as they were rounded"
        )
    return found

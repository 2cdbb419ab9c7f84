"""Where the output head's int4 weights lie in a program's file, so that a device can read them
there: kept once, whatever kind of head the model has."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle import WordsPlace
from torch import nn

from ..model.tensor_file import placed_bytes
from ..quantise.int4 import packed_weight


def packed_words(
    head: nn.Linear,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Codes uint8 ``[V, D / 2]`` and scales, bfloat16 as uint16 ``[V, D / 32]``, of a linear that
    was rounded to int4 (see ``packed_weight``)."""
    codes, scales = packed_weight(head)
    return codes.numpy(), scales.view(torch.int16).numpy().view(np.uint16)


def find_words(
    file: Path, codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16]
) -> WordsPlace:
    """Where both arrays lie in the program's ``file``.

    Raises:
        ModelError: they do not.
    """
    what = "the output head's weights"
    flat = (each.reshape(-1).view(np.uint8) for each in (codes, scales))
    return WordsPlace(file.name, *(placed_bytes(each, file, what) for each in flat))

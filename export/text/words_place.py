"""Where the output head's int4 weights lie in a program's file, so that a device can read them
there: kept once, whatever kind of head the model has."""

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle import WordsPlace
from seedtune.runtime.errors import ModelError
from torch import nn

from ..quantise.int4 import packed_weight

_NEEDLE, _BLOCK = 4096, 1 << 24


def packed_words(
    head: nn.Linear,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Codes uint8 ``[V, D / 2]`` and scales, bfloat16 as uint16 ``[V, D / 32]``, of a linear that
    was rounded to int4 (see ``packed_int4``)."""
    codes, scales = packed_weight(head)
    return codes.numpy(), scales.view(torch.int16).numpy().view(np.uint16)


def find_words(
    content: bytes | Path, file: str, codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16]
) -> WordsPlace:
    """Where both arrays lie in ``content``, that of the program's ``file``.

    Raises:
        ModelError: they do not.
    """
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
        return WordsPlace(file, _find(source, codes, file), _find(source, scales, file))


def _find(source: BinaryIO, wanted: npt.NDArray[Any], file: str) -> int:
    """Read in blocks: a mapped file would come into memory as a whole."""
    data = wanted.tobytes()
    needle, before, block = data[:_NEEDLE], 0, b""
    source.seek(0)
    while more := source.read(_BLOCK):
        block = block[-_NEEDLE:] + more
        place = block.find(needle)
        while place >= 0:
            found, here = before + len(more) - len(block) + place, source.tell()
            source.seek(found)
            if source.read(len(data)) == data:
                return found
            source.seek(here)
            place = block.find(needle, place + 1)
        before += len(more)
    raise ModelError(f"{file}: does not hold the output head's weights as they were rounded")

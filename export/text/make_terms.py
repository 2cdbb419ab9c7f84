"""Makes the part of a bundle that terms of the upper blocks are learned in
(``runtime.bundle.terms``), and says where the matrices beside them lie in a program's file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle.terms import MatrixPlace, TermsInfo, TermsPart

from ..model.tensor_file import placed_bytes, tensor_bytes
from ..program.score_program import ScoreProgram
from ..program.sensitive_linear import SensitiveLinear
from ..quantise.int4 import packed_weight
from .make_frame import TOKENS

DIRECTION_ROWS = 16
"""Rows of generic text that directions are taken from."""


@dataclass(frozen=True)
class Terms:
    """The part, and the matrices whose places are still to be found."""

    part: TermsPart
    info: TermsInfo
    """Without file and places."""
    matrices: list["_Matrix"]

    def placed(self, file: Path) -> TermsInfo:
        """Sizes, and places in the program's ``file``.

        Raises:
            ModelError: a matrix is not there as it was rounded.
        """
        near = [0, 0, 0]
        places = []
        for matrix in self.matrices:
            found = [0, 0, 0]
            for kind, tensor in enumerate((matrix.codes, matrix.scales, matrix.floats)):
                if tensor is not None:
                    wanted = tensor_bytes(tensor)
                    near[kind] = placed_bytes(wanted, file, "a block's weights", near[kind])
                    found[kind] = near[kind]
            found[2] += 4 * matrix.skipped
            places.append(
                MatrixPlace(found[0], found[1], found[2], len(matrix.columns), matrix.layer)
            )
        return replace(self.info, file=file.name, matrices=tuple(places))


@dataclass(frozen=True)
class _Matrix:
    codes: torch.Tensor
    scales: torch.Tensor
    floats: torch.Tensor | None
    """All of the block's columns that are not int4 (see ``BlockScatter``)."""
    skipped: int
    """Numbers of ``floats`` in front of the matrix's own."""
    columns: npt.NDArray[np.int32]
    layer: str
    """Its name in the model; empty where it has no sensitive values."""


def make_terms(
    program: ScoreProgram, tokens: npt.NDArray[np.int64], values: npt.NDArray[np.float16]
) -> Terms | None:
    """Find the directions of a rounded program's terms on calibration text, int64 ``[n, length]``.

    Args:
        values: the sensitive values, float16 ``[K]``.

    Returns:
        None where the program takes no terms; from here on it takes none where its blocks turn out
        to be built in another way.
    """
    terms = program.terms
    if terms is None:
        return None
    given = torch.from_numpy(values.astype(np.float32))[None]
    text = torch.from_numpy(tokens[:DIRECTION_ROWS])
    scales = terms.find_directions(lambda: program.own_states(text, given))
    if scales is None:
        program.terms = None
        return None
    matrices = [_matrix(each) for each in terms.matrices()]
    kept = tokens[: max(1, TOKENS // tokens.shape[1])]
    part = TermsPart(
        **terms.part(),
        scales=np.stack(scales),
        columns=np.concatenate([each.columns for each in matrices]),
        tokens=kept.astype(np.int32),
    )
    sizes = terms.first, terms.count, terms.rank, terms.inner
    norms = part.norms.shape[1]
    info = TermsInfo(*sizes, terms.eps, norms, terms.activation, "", ())
    return Terms(part, info, matrices)


def _matrix(module: Any) -> _Matrix:
    if not isinstance(module, SensitiveLinear):
        return _Matrix(*packed_weight(module), None, 0, np.empty(0, np.int32), "")
    block, slot = module.block, module.slot
    columns = module.columns.index.numpy().astype(np.int32)
    skipped = sum(block.sizes[:slot])
    packed = packed_weight(module.dense)
    return _Matrix(*packed, block.base, skipped, columns, module.layer)

"""Makes the part of a bundle that a head for text is learned in (``runtime.bundle.text_head``).

Calibration text goes through the rounded program once. Its states and the gradient that the head
gives on it have second moments, whose eigenvectors become the bases; the final norm is read off
what goes into it and what comes out, whatever its kind.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from seedtune.runtime.bundle import TextFrame, WordsPlace
from seedtune.runtime.bundle.text_head import about_mean
from seedtune.runtime.scoring.word_table import WordTable
from torch import nn

from ..model.tensor_file import placed_bytes
from ..program.score_program import ScoreProgram
from ..quantise.int4 import packed_weight
from ..quantise.quantise_program import Passed

Floats = npt.NDArray[np.float32]
ENTRIES = 576 * 1152
"""Most weights: what bounds the journal of a large model, at a bit each a step. All directions of
SmolLM2."""
TOKENS = 4096
"""Most tokens of generic text that are kept; 16 256 in place of 4 096 did not keep other text
closer."""
GRADIENTS = 2048
"""Tokens that the gradient's second moment is taken over."""
_ROWS, _BLOCK = 8, 512
"""Rows of a forward, and tokens whose logits are taken at once."""
_EXACT = 0.02
"""How far the norm's output may lie from what is read off, as a share of it."""


@torch.no_grad()
def make_frame(
    program: ScoreProgram,
    tokens: npt.NDArray[np.int64],
    values: npt.NDArray[np.float16],
    progress: Callable[[int, int], None] = lambda done, total: None,
    passed: Passed | None = None,
) -> TextFrame | None:
    """From the rounded program and calibration text, int64 ``[n, length]``.

    Args:
        values: the sensitive values, float16 ``[K]``.
        passed: what the program makes of the text, where that is known already.
        progress: called with (steps done, of all).

    Returns:
        None where what the head reads does not follow from the last state alone.
    """
    rows = tokens[: max(1, TOKENS // tokens.shape[1])]
    passes = [] if passed else np.array_split(rows, -(-len(rows) // _ROWS))
    blocks = np.array_split(np.arange(rows.size), -(-rows.size // _BLOCK))
    stages = len(passes) + len(blocks)
    parts = [tuple(each[: rows.size] for each in passed)] if passed else []
    given = torch.from_numpy(values.astype(np.float32))[None]
    for part in passes:
        head_reads, adapter_reads = program.own_states(torch.from_numpy(part), given)
        parts.append((adapter_reads[0].numpy(), head_reads[0].numpy()))
        progress(len(parts), stages)
    states, read = (np.concatenate(each) for each in zip(*parts, strict=True))
    found = read_norm(states[:, -read.shape[1] :], read)
    if found is None:
        return None
    weight, shift = found
    words = WordTable(*packed_words(program.head), program.softcap)
    said = np.concatenate([rows[:, 1:], rows[:, :1]], axis=1).reshape(-1)
    means = []
    for block in blocks:
        means.append(words.expected(read[block], said[block])[0])
        progress(len(passes) + len(means), stages)
    mean = np.concatenate(means)
    # A row's last token has nothing said behind it.
    first = np.arange(rows.size).reshape(rows.shape)[:, :-1].reshape(-1)[:GRADIENTS]
    size = np.asarray(np.sqrt(np.square(read).mean()), np.float32)
    learned = states.copy()
    learned[:, -len(weight) :] *= weight / size
    axes = _axes(learned), _axes(mean[first] - words.vectors(said[first]))
    shrink = min(1.0, (ENTRIES / (axes[0].shape[1] * axes[1].shape[1])) ** 0.5)
    inputs, outputs = (
        each[:, : max(1, int(each.shape[1] * shrink))].astype(np.float16) for each in axes
    )
    expected = (mean @ outputs.astype(np.float32)).astype(np.float16)
    return TextFrame(weight, shift, size, inputs, outputs, states.astype(np.float16), expected)


def read_norm(last: Floats, read: Floats) -> tuple[Floats, Floats] | None:
    """Weight and shift ``[D]`` of the final norm: of root mean square or about the mean."""
    if last.shape != read.shape:
        return None
    for unit, shifted in ((last, False), (about_mean(last), True)):
        middle = unit.mean(axis=0) * shifted, read.mean(axis=0) * shifted
        apart = unit - middle[0]
        weight = (apart * (read - middle[1])).sum(axis=0) / np.square(apart).sum(axis=0)
        shift = middle[1] - weight * middle[0]
        error = np.square(unit * weight + shift - read).mean() / np.square(read).mean()
        if error < _EXACT**2:
            return weight.astype(np.float32), shift.astype(np.float32)
    return None


def _axes(samples: Floats) -> npt.NDArray[np.float64]:
    """Eigenvectors of the second moment of ``[n, width]``, the largest first, as columns; no more
    than there are samples."""
    count, width = samples.shape
    wide = samples.astype(np.float64)
    if count >= width:
        vectors: npt.NDArray[np.float64] = np.linalg.eigh(wide.T @ wide / count)[1][:, ::-1]
        return vectors
    # The products of samples have the same ones, mixed from samples: of 7B's states a half.
    values, mixed = np.linalg.eigh(wide @ wide.T)
    kept = values > 1e-12 * values[-1]
    kept[-1] = True
    vectors = wide.T @ mixed[:, kept]
    scaled: npt.NDArray[np.float64] = vectors / np.sqrt(np.maximum(values[kept], 1e-300))
    return scaled[:, ::-1]


def packed_words(head: nn.Linear) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Codes uint8 ``[V, D / 2]`` and scales, bfloat16 as uint16 ``[V, D / 32]``, of a linear that
    was rounded to int4 (see ``packed_weight``)."""
    codes, scales = packed_weight(head)
    return codes.numpy(), scales.view(torch.int16).numpy().view(np.uint16)


def find_words(
    file: Path, codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16]
) -> WordsPlace:
    """Where both arrays lie in the program's ``file``, so that a device can read them there: kept
    once, whatever kind of head the model has.

    Raises:
        ModelError: they do not.
    """
    what = "the output head's weights"
    flat = (each.reshape(-1).view(np.uint8) for each in (codes, scales))
    return WordsPlace(file.name, *(placed_bytes(each, file, what) for each in flat))

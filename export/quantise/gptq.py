"""GPTQ: weights to int4 column by column, each column's error carried by the columns after it.

Frantar et al., arXiv 2210.17323, section 3, with the columns in their own order. Rounding ``W`` to
``Q`` costs a product ``x W^T`` the error ``(W - Q) H (W - Q)^T`` with ``H`` the mean of ``x x^T``
over calibration tokens. Once a column is rounded, the columns still open move to cancel what they
can of its error; ``H`` says how.

A group's scale is chosen when its first column is reached, from the weights as they then are: of a
few fractions of the full range the one with the least error, weighted by the diagonal of ``H``.
Scales are exact in bfloat16, the form in which XNNPACK stores them, so that the integers suit the
scales that run.
"""

import torch
from seedtune.runtime.errors import ModelError

LOWEST, HIGHEST = -8, 7
DAMPING = 0.01
"""Share of the mean diagonal that is added to it: section 3.3 of the paper."""
_RANGES = torch.linspace(0.6, 1.08, 13)
"""Fractions of a group's largest magnitude that its scale may cover."""
_SMALLEST_SCALE = 2.0**-23
_ROWS = 4096  # rounded at a time: a group of columns of so many rows stays in a core's cache


def inverse_factor(second_moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Upper Cholesky factor float32 ``[in, in]`` of the inverse of the damped ``second_moment``.

    A column that was zero in every token has no part in any error; its row stays the identity's.

    Raises:
        ModelError: ``second_moment`` is not finite.
    """
    if not bool(torch.isfinite(second_moment).all()):
        raise ModelError("its input on the calibration text holds NaN or infinity")
    matrix = second_moment.to(torch.float64)
    diagonal = matrix.diagonal()
    idle = diagonal == 0
    added = damping * diagonal.sum() / max(1, int((~idle).sum()))
    diagonal += torch.where(idle, 1.0, added)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    found: torch.Tensor = torch.linalg.cholesky(inverse, upper=True).to(torch.float32)
    return found


def round_with_compensation(
    weight: torch.Tensor, second_moment: torch.Tensor, factor: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round ``weight`` float32 ``[out, in]``; it is left as it is.

    Args:
        second_moment: mean of ``x x^T``, float32 ``[in, in]``.
        factor: of ``inverse_factor``.

    Returns:
        Integers int8 ``[out, in]`` in -8..7 and scales float32 ``[out, in / group_size]``.
    """
    importance, keep = second_moment.diagonal(), torch.contiguous_format
    integers = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), weight.shape[1] // group_size)
    for first in range(0, len(weight), _ROWS):
        rows = slice(first, first + _ROWS)
        columns = weight[rows].t().clone(memory_format=keep)
        rounded, steps = _round_rows(columns, importance, factor, group_size)
        integers[rows], scales[rows] = rounded.t(), steps.t()
    return integers, scales


def choose_scales(columns: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """Scales float32 ``[out]`` of one group, ``columns`` float32 ``[group, out]``.

    Args:
        importance: weight of each column's square error, float32 ``[group]``.
    """
    largest = columns.abs().amax(0)
    best = torch.full_like(largest, torch.inf)
    chosen = torch.zeros_like(largest)
    for fraction in _RANGES:
        scale = (largest * (fraction / 7.5)).clamp(min=_SMALLEST_SCALE)
        scale = scale.to(torch.bfloat16).to(torch.float32)
        apart = (columns / scale).round_().clamp_(LOWEST, HIGHEST).mul_(scale).sub_(columns)
        error = importance @ apart.square_()
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scale, chosen)
    return chosen


def _round_rows(
    columns: torch.Tensor, importance: torch.Tensor, factor: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``round_with_compensation`` of some rows, given and returned as columns ``[in, rows]``."""
    width, rows = columns.shape
    integers = torch.empty(width, rows, dtype=torch.int8)
    scales = torch.empty(width // group_size, rows)
    errors = torch.empty(group_size, rows)
    for group, first in enumerate(range(0, width, group_size)):
        last = first + group_size
        open_columns = columns[first:last]
        scale = choose_scales(open_columns, importance[first:last])
        scales[group] = scale
        for place in range(group_size):
            at = first + place
            rounded = (open_columns[place] / scale).round_().clamp_(LOWEST, HIGHEST)
            integers[at] = rounded
            error = (open_columns[place] - rounded * scale) / factor[at, at]
            open_columns[place + 1 :].addr_(factor[at, at + 1 : last], error, alpha=-1)
            errors[place] = error
        columns[last:].addmm_(factor[first:last, last:].t(), errors, alpha=-1)
    return integers, scales

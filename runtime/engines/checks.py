"""What every engine checks before it hands a request to its program."""

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..errors import EngineError


def check_request(
    bounds: Bounds,
    tokens: NDArray[np.int64],
    positions: NDArray[np.int64],
    candidates: NDArray[np.int64],
    values: NDArray[np.float32],
    entries: int,
) -> None:
    """Refuse arguments of ``Engine.score`` that the program was not exported for.

    A program given larger sizes than it was planned for, or an index outside a tensor, fails deep
    inside a kernel at best; here the message names the bound.

    Args:
        entries: K, the number of sensitive values of the bundle.

    Raises:
        EngineError: a type, rank, size or index is wrong.
    """
    own = tokens.ndim == 3
    if own and not bounds.rows_by_probe:
        raise EngineError(
            "the program takes one set of rows for all probes; export the model again for rows of "
            "each probe's own"
        )
    _check_array("tokens", tokens, np.int64, 2 + own)
    _check_array("positions", positions, np.int64, 1 + own)
    _check_array("candidates", candidates, np.int64, 2 + own)
    _check_array("values", values, np.float32, 2)

    probes = len(values)
    rows, length = tokens.shape[-2:]
    scored, choices = candidates.shape[-2:]
    _check_size("probes", probes, 1, bounds.probes_at_most, "values has {} rows")
    # Many probes share what memory is planned for ``bounds.probes``; fewer have no more each.
    share = min(1.0, bounds.probes / probes)
    tokens_each, positions_each = int(bounds.tokens * share), int(bounds.positions * share)
    _check_size("length", length, 2, bounds.length, "tokens has rows of {} tokens")
    _check_size("rows", rows * length, 2, tokens_each, "{} tokens are given to a probe")
    _check_size("positions", positions.shape[-1], 1, positions_each, "{} positions are given")
    _check_size("candidates", choices, 1, bounds.candidates, "candidates has {} columns")
    if scored != positions.shape[-1]:
        raise EngineError(f"candidates has {scored} rows for {positions.shape[-1]} positions")
    if values.shape[1] != entries:
        raise EngineError(f"values has {values.shape[1]} columns, the program takes {entries}")
    for name, array in (("tokens", tokens), ("positions", positions), ("candidates", candidates)):
        if own and len(array) != probes:
            raise EngineError(f"{name} is for {len(array)} probes, values has {probes} rows")

    _check_range("tokens", tokens, None)
    _check_range("positions", positions, rows * length)
    _check_range("candidates", candidates, None)


def by_probe(
    bounds: Bounds,
    tokens: NDArray[np.int64],
    positions: NDArray[np.int64],
    candidates: NDArray[np.int64],
    probes: int,
) -> list[NDArray[np.generic]]:
    """The request as the program takes it: shared rows repeated for each probe where it has rows
    by probe."""
    request = (tokens, positions, candidates)
    if not bounds.rows_by_probe or tokens.ndim == 3:
        return list(request)
    return [np.repeat(each[None], probes, axis=0) for each in request]


def need_hidden(width: int) -> None:
    """Refuse ``Engine.score_hidden`` of a program without hidden states."""
    if not width:
        raise EngineError("the program returns no hidden states; export the bundle again")


def _check_array(name: str, array: NDArray[np.generic], dtype: type, rank: int) -> None:
    if array.dtype != dtype:
        raise EngineError(f"{name} is {array.dtype}, must be {np.dtype(dtype)}")
    if array.ndim != rank:
        raise EngineError(f"{name} has {array.ndim} axes, must have {rank}")


def _check_size(bound: str, size: int, least: int, most: int, what: str) -> None:
    if not least <= size <= most:
        allowed = f"{least} to {most}" if least < most else f"{most}"
        raise EngineError(f"{what.format(size)}, the program takes {allowed} (bounds.{bound})")


def _check_range(name: str, array: NDArray[np.int64], end: int | None) -> None:
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0:
        raise EngineError(f"{name} holds {lowest}, must not be negative")
    if end is not None and highest >= end:
        raise EngineError(f"{name} holds {highest}, outside the {end} tokens given")

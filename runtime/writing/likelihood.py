"""Log-probabilities of tokens: of those that are written, and of a text that is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine
from ..errors import DataError
from ..scoring.values import Values
from ..tasks import Batch

MOST = 20
"""Of the likeliest tokens of a place, that can be asked for."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and how likely it was behind those before it (natural logarithm)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens of its place, each with its own, the likeliest first."""


def likeliest(scores: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """The ``count`` tokens with the highest of ``scores``, float32 ``[V]``, the highest first."""
    if not count:
        return ()
    found = np.argpartition(-scores, min(count, len(scores) - 1))[:count]
    return tuple(found[np.argsort(-scores[found], kind="stable")].tolist())


def of_written(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Of ``token`` where ``logits``, float32 ``[V]``, say what comes next."""
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits.astype(np.float64) - highest).sum()))
    others = tuple((each, float(logits[each]) - total) for each in likeliest(logits, top))
    return TokenLogprob(token, float(logits[token]) - total, others)


def of_given(
    engine: Engine,
    values: Values,
    bounds: Bounds,
    tokens: Sequence[int],
    nominated: Sequence[Sequence[int]] = (),
) -> list[TokenLogprob]:
    """Of each token of a text but the first, as an evaluation scores it.

    Args:
        bounds: of a pass.
        nominated: as many tokens for each of these places, whose log-probabilities are told, too.

    Raises:
        DataError: the text is longer than a row of the program, or ``nominated`` are too many.
    """
    if len(tokens) > bounds.length:
        raise DataError(
            f"the text has {len(tokens)} tokens, of at most {bounds.length} log-probabilities can "
            f"be told here: shorten it, or export with --length {len(tokens)}"
        )
    count = len(tokens) - 1
    said = np.asarray(tokens, np.int64)
    candidates = said[1:, None]
    if len(nominated):
        candidates = np.hstack([candidates, np.asarray(nominated, np.int64)])
    asked = candidates.shape[1] - 1
    if asked >= bounds.candidates:
        raise DataError(
            f"{asked} likeliest tokens are asked for, of a given text this bundle tells "
            f"at most {bounds.candidates - 1}: export with a larger --candidates"
        )
    found: list[TokenLogprob] = []
    for first in range(0, count, bounds.positions):
        places = np.arange(first, min(first + bounds.positions, count))
        batch = Batch(said[None], places, candidates[places], np.zeros(1, np.int64))
        for place, logp in zip(places, values.score(engine, batch)[0].tolist(), strict=True):
            others = zip(candidates[place, 1:].tolist(), logp[1:], strict=True)
            ranked = sorted(others, key=lambda each: -each[1])
            found.append(TokenLogprob(int(said[place + 1]), logp[0], tuple(ranked)))
    return found

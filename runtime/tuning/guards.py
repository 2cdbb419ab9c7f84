"""Guards: which steps leave the values alone, and when to give up.

All judge from the step itself and from journaled history, so that a resumed run skips the same
steps.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..journal.format import SKIP_REASONS, Skip
from ..journal.history import History, mean_square

NOT_FINITE, LOSS_JUMP, RUNAWAY = 1, 2, 3
MAX_SKIPS = 10
"""Skipped steps in a row after which the run stops."""

_ADVICE = {
    NOT_FINITE: "the program returns losses that are not numbers: check the data with "
    "'seedtune evaluate', or rewind to an earlier step and lower lr",
    LOSS_JUMP: "the loss is far above its start: rewind to the best step and lower lr",
    RUNAWAY: "the steps explode: rewind to the best step and lower lr",
}


def judge_losses(losses: NDArray[np.float64], history: History) -> Skip | None:
    """Skip on a probe loss (float64 ``[P]``) that is not finite, or on a jump of their mean."""
    if not np.isfinite(losses).all():
        return Skip(NOT_FINITE)
    limit = history.loss_limit
    # Where the step is the remedy, the batch that surprised the estimator would teach nothing.
    if not history.spec.mends_bad_losses and limit is not None and float(losses.mean()) > limit:
        return Skip(LOSS_JUMP)
    return None


def judge_scalars(scalars: NDArray[Any], history: History) -> Skip | None:
    """Skip on scalars (float16 ``[S]``) beyond float16 or far beyond those of recent steps; signs
    cannot be."""
    if not np.isfinite(scalars).all():
        return Skip(RUNAWAY)
    limit = history.scalar_limit
    if limit is not None and math.sqrt(mean_square(map(float, scalars))) > limit:
        return Skip(RUNAWAY)
    return None


def giving_up(skip: Skip, history: History) -> str | None:
    """Why the run has to stop after this skipped step, with advice; None while it may go on."""
    if history.skips_in_row < MAX_SKIPS:
        return None
    return (
        f"{history.skips_in_row} steps in a row were skipped up to step {history.steps} "
        f"({SKIP_REASONS[skip.reason]}); {_ADVICE[skip.reason]}"
    )

"""An answer head: the answer also follows, linearly, from a hidden state that every forward has.

A loss is one number of an example. The hidden state behind it is hundreds, and what the answer is
can be read off it with weights that need no backward pass: the loss is convex in them and all of
its derivatives lie in the one forward. To the score of an answer (a label word's log-probability,
the mean of a choice's) is added ``w_answer . [x; 1]``, with ``x`` the residual stream at the scored
position in the upper half of the model and at its end, and its mean over the row so far half way
up, which the program returns (``export.block_tap``): linear probing (Alain and Bengio, arXiv
1610.01644) on top of what the model already says, or of a share of it.

The weights, float32 ``[R, D + 1]``, follow the K sensitive values in a run's values: R rows are the
task's, one a label, or one for all choices. One more number is that share less 1, so that zeros are
no head.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, Scores
from ..errors import EngineError, TuningError
from ..tasks import Batch, Task
from .text_head import TextHead


@dataclass(frozen=True)
class AnswerHeadShape:
    """Sizes of an answer head, fixed by the task and the program."""

    rows: int
    """R."""
    width: int
    """D."""
    answers: int
    """A: labels or choices."""
    share: int = 0
    """1 where a share of the model's own answer is learned; runs of before kept all of it."""

    @property
    def entries(self) -> int:
        """Number of weights: ``R * (D + 1)``, and one for a share."""
        return self.rows * (self.width + 1) + self.share


def check_values(
    engine: Engine, task: Task, values: NDArray[Any], text: TextHead | None = None
) -> None:
    """Refuse values (``[n]``) that are neither the program's nor with a head for ``task``.

    Args:
        text: what the bundle has for a head for text.

    Raises:
        TuningError: they are of another bundle, their head is for another task, or a head's memory
            of words holds none.
    """
    more = len(values) - engine.entries
    if task.writes and text is not None and text.takes(more):
        text.memory(np.asarray(values[engine.entries :], np.float32))
        return
    head = task.head_rows * (engine.hidden_width + 1)
    if more and (not engine.hidden_width or not head or more not in (head, head + 1)):
        raise TuningError(
            f"{len(values)} values are neither the {engine.entries} of this program nor those and "
            "a head for this task: give the bundle and the task that they were tuned with"
        )


def score_batch(
    engine: Engine, batch: Batch, values: NDArray[np.float32], text: TextHead | None = None
) -> NDArray[np.float32]:
    """Log-probabilities ``[P, N, C]`` of a batch, with the head's part where there is one.

    Args:
        values: float32 ``[P, K]``, or with the weights of an answer head, or what a head for text
            takes, behind them.
        text: what the bundle has for a head for text, where the task takes that one.
    """
    entries = engine.entries
    if values.shape[1] == entries:
        return engine.score(batch, values).logp
    if text is not None and text.takes(values.shape[1] - entries):
        return np.concatenate([score_text(engine, batch, row, text).logp for row in values])
    logp, inputs = score_with_inputs(engine, batch, values[:, :entries])
    return add_head(logp, inputs, values[:, entries:])


def score_text(engine: Engine, batch: Batch, values: NDArray[np.float32], text: TextHead) -> Scores:
    """What ``engine.score`` gives under one row of values, float32 ``[n]``, with what a head for
    text takes behind them: its memory has its part in the log-probabilities."""
    row, own = values[None, : engine.entries], values[engine.entries :]
    scores, memory = engine.score(batch, row, text.adapter(own)), text.memory(own)
    if memory is None:
        return scores
    logp = memory.mixed(scores.logp[0], batch.tokens, batch.positions, batch.candidates)
    return replace(scores, logp=logp[None])


def score_with_inputs(
    engine: Engine, batch: Batch, values: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities ``[P, N, C]`` without a head, and what one sees: ``[P, N, D + 1]``.

    Raises:
        EngineError: also if the program returns no hidden states.
    """
    scores = engine.score(batch, values)
    if scores.hidden is None:
        raise EngineError("the program returns no hidden states; export the bundle again")
    one = np.ones((*scores.hidden.shape[:2], 1), np.float32)
    return scores.logp, np.concatenate([scores.hidden, one], axis=2)


def add_head(
    logp: NDArray[np.float32], inputs: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The share of ``logp`` ``[P, N, C]`` and the head's part, from weights ``[P, R * (D + 1)]``
    or, where they hold a share, ``[P, R * (D + 1) + 1]``."""
    if weights.shape[1] % inputs.shape[2] == 1:
        logp = (1 + weights[:, -1, None, None]) * logp
        weights = weights[:, :-1]
    shaped = weights.reshape(len(weights), -1, inputs.shape[2])
    return logp + inputs @ shaped.transpose(0, 2, 1)

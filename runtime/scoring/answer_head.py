"""An answer head: the answer also follows, linearly, from a hidden state that every forward has.

A loss is one number of an example. The hidden state behind it is hundreds, and what the answer is
can be read off it with weights that need no backward pass: the loss is convex in them and all of
its derivatives lie in the one forward. To the score of an answer (a label word's log-probability,
the mean of a choice's) is added ``w_answer . [x; 1]``, with ``x`` the residual stream at the scored
position in the upper half of the model and at its end, and its mean over the row so far half way
up, which the program returns (``export.block_tap``): linear probing (Alain and Bengio, arXiv
1610.01644) on top of what the model already says, or of a share of it.

The weights are float32 ``[R, D + 1]``: R rows are the task's, one a label, or one for all choices.
One more number is that share less 1, so that zeros are no head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..engines import Engine, Scores
from ..errors import EngineError, TuningError
from ..schema import ListOf, Whole, check
from ..tasks import Batch, Observation, Task
from .batch_loss import Look
from .part import Description, Part
from .values import Values

KIND = "answer-head"
_LARGEST = 1 << 28
"""Weights that a description may ask for: 1 GiB."""


@dataclass(frozen=True, eq=False)
class AnswerHead(Part):
    """The part (see ``Part``)."""

    labels: tuple[str, ...]
    """Of the rows; none where one row serves all choices."""
    width: int
    """D."""
    own: NDArray[np.float32]
    """float32 ``[R * (D + 1) + 1]``, the last for the share."""

    @property
    def rows(self) -> int:
        """R."""
        return max(1, len(self.labels))

    @property
    def weights(self) -> NDArray[np.float32]:
        """float32 ``[R, D + 1]``, a view."""
        return self.own[:-1].reshape(self.rows, self.width + 1)

    @property
    def share(self) -> float:
        """Of what the model says itself."""
        return 1 + float(self.own[-1])

    @property
    def description(self) -> Description:
        return describe(self.labels, self.width)

    def copy(self) -> Self:
        return replace(self, own=self.own.copy())

    def for_task(self, task: Task, engine: Engine) -> Self:
        labels = task.head_labels
        if not task.head_rows:
            raise TuningError(
                "the values hold an answer head, and this task leaves no answer to choose: give "
                "the task that they were tuned for"
            )
        if engine.hidden_width != self.width:
            raise TuningError(
                f"the answer head reads {self.width} numbers a position, this program returns "
                f"{engine.hidden_width}: give the bundle that the values were tuned with"
            )
        if sorted(labels) != sorted(self.labels):
            raise TuningError(
                f"the answer head is for {_named(self.labels)}, this task for {_named(labels)}: "
                "give the task that the values were tuned for"
            )
        if labels == self.labels:
            return self
        rows = self.weights[[self.labels.index(label) for label in labels]]
        return replace(self, labels=labels, own=np.append(rows.reshape(-1), self.own[-1]))

    def changed(self, scores: Scores, batch: Batch) -> NDArray[np.float32]:
        return self.added(scores.logp, seen_in(scores))

    def added(self, logp: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float32]:
        """The share of ``logp`` ``[P, N, C]``, and the head's part from ``seen``
        ``[P, N, D + 1]``."""
        return np.asarray((1 + self.own[-1]) * logp + seen @ self.weights.T)


class AnswerHeads:
    """The kind (see ``PartKind``)."""

    @classmethod
    def of(cls, bundle: Bundle) -> "AnswerHeads":
        """Of any bundle: whether its programs return hidden states, an engine says."""
        return cls()

    def fits(self, task: Task, engine: Engine) -> bool:
        return task.head_rows > 0 and engine.hidden_width > 0

    def restore(
        self, description: Description, own: NDArray[np.float32] | None = None
    ) -> AnswerHead:
        check(dict(description), {"kind": str, "labels": ListOf(str), "width": Whole(1, _LARGEST)})
        labels, width = tuple(description["labels"]), description["width"]
        if len(set(labels)) < len(labels) or len(labels) == 1:
            raise ValueError("field labels must name two or more different answers, or none")
        count = max(1, len(labels)) * (width + 1) + 1
        if count > _LARGEST:
            raise ValueError(f"an answer head of {count} weights")
        own = np.zeros(count, np.float32) if own is None else own
        if own.shape != (count,):
            raise ValueError(f"{own.size} weights of an answer head, not {count}")
        return AnswerHead(labels, width, own)


def describe(labels: Sequence[str], width: int) -> Description:
    """An answer head with a row for each of ``labels``, or one for all choices without."""
    return {"kind": KIND, "labels": list(labels), "width": width}


def seen_in(scores: Scores) -> NDArray[np.float32]:
    """What an answer head sees: the hidden states and a 1, float32 ``[P, N, D + 1]``.

    Raises:
        EngineError: the program returns no hidden states.
    """
    if scores.hidden is None:
        raise EngineError("the program returns no hidden states; export the bundle again")
    one = np.ones((*scores.hidden.shape[:2], 1), np.float32)
    return np.concatenate([scores.hidden, one], axis=2)


def observe(look: Look, values: Values) -> tuple[NDArray[np.float64], Observation]:
    """Losses float64 ``[1, examples]`` under ``values``, whose part is an answer head, and from the
    same forwards what it learns from."""
    head = values.part
    assert isinstance(head, AnswerHead)
    losses = np.empty((1, look.examples), dtype=np.float64)
    order: list[int] = []
    parts = []
    for numbers, batch, scores in look.forwards(values.sensitive):
        seen = seen_in(scores)
        parts.append(look.task.observe(scores.logp[0], seen[0], batch))
        losses[:, numbers] = look.task.losses(head.added(scores.logp, seen), batch)
        order += numbers
    back = np.argsort(order)
    return losses, Observation(
        np.concatenate([part.scores for part in parts])[back],
        np.concatenate([part.features for part in parts])[back],
        np.concatenate([part.gold for part in parts])[back],
    )


def _named(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels)) or "choices of the rows' own"

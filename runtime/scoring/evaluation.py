"""Loss, metric and answers over a whole set of examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine
from ..errors import DataError, EngineError
from ..tasks import Batch, Encoded, Prediction, Task, need_labels
from .answer_head import check_values, score_batch
from .batch_loss import passes
from .confusion import Confusion
from .known_forwards import KnownForwards
from .text_head import TextHead


@dataclass(frozen=True)
class Evaluation:
    """How well one set of values does."""

    loss: float
    """Mean over examples of the training objective."""
    metric: float
    """Accuracy (share of examples) or perplexity (over all tokens), as the task says."""
    examples: int
    forwards: int
    """Calls of the program."""
    confusion: Confusion | None = None
    """Counts by right and given answer, with macro-F1 and the share of the most frequent answer;
    None where there is nothing to choose."""

    def __str__(self) -> str:
        return f"held-out loss {self.loss:.4g}, metric {self.metric:.4g}"


def evaluate(
    engine: Engine,
    task: Task,
    encoded: Sequence[Encoded],
    values: NDArray[np.float32] | NDArray[np.float16],
    bounds: Bounds,
    progress: Callable[[int, int], None] | None = None,
    text: TextHead | None = None,
    known: KnownForwards | None = None,
) -> Evaluation:
    """Evaluate ``values`` (``[K]``, or with a head's weights behind) on all of ``encoded``.

    Args:
        progress: called with the examples done and their total after every pass.
        text: what the bundle has for a head for text, where the task writes.
        known: of this engine, for examples that come again under other weights of an answer head.

    Raises:
        DataError: no examples, or one has no label.
    """
    need_labels(encoded, "example")
    loss = 0.0
    totals = np.zeros(2)
    forwards, before = 0, 0 if known is None else known.calls
    right, given = [], []
    for _, batch, logp in _forwards(engine, task, encoded, values, bounds, progress, text, known):
        loss += float(task.losses(logp, batch).sum())
        totals += task.metric(logp[0], batch).sum(axis=0)
        forwards = forwards + 1 if known is None else known.calls - before
        if task.labels:
            right.append(batch.gold)
            given.append(task.chosen(logp[0], batch))
    confusion = None
    if right:
        confusion = Confusion.of(task.labels, np.concatenate(right), np.concatenate(given))
    metric = task.aggregate(totals)
    return Evaluation(loss / len(encoded), metric, len(encoded), forwards, confusion)


def predict(
    engine: Engine,
    task: Task,
    encoded: Sequence[Encoded],
    values: NDArray[np.float32] | NDArray[np.float16],
    bounds: Bounds,
    progress: Callable[[int, int], None] | None = None,
    text: TextHead | None = None,
    known: KnownForwards | None = None,
) -> list[Prediction]:
    """The answer to each of ``encoded``, in their order; arguments as of ``evaluate``.

    Raises:
        DataError: no examples.
        EngineError: scores of one are not finite.
    """
    answers: dict[int, Prediction] = {}
    passed = _forwards(engine, task, encoded, values, bounds, progress, text, known)
    for indices, batch, logp in passed:
        unfit = np.flatnonzero(~np.isfinite(logp[0]).all(axis=1))
        if len(unfit):
            example = int(batch.row_of[unfit[0]]) * batch.examples // len(batch.tokens)
            raise EngineError(
                f"row {indices[example] + 1}: its scores are NaN or infinite, so there is no "
                "answer; the values in use, or the bundle's weights, are not fit for use: take "
                "those of an earlier step, or export the bundle again"
            )
        answers.update(zip(indices, task.predict(logp[0], batch), strict=True))
    return [answers[index] for index in range(len(encoded))]


def _forwards(
    engine: Engine,
    task: Task,
    encoded: Sequence[Encoded],
    values: NDArray[np.float32] | NDArray[np.float16],
    bounds: Bounds,
    progress: Callable[[int, int], None] | None,
    text: TextHead | None,
    known: KnownForwards | None,
) -> Iterator[tuple[list[int], Batch, NDArray[np.float32]]]:
    """Indices, batch and log-probabilities ``[1, N, C]`` of each pass."""
    if not encoded:
        raise DataError("no examples to evaluate on")
    check_values(engine, task, values, text)
    row = values.astype(np.float32).reshape(1, -1)
    done = 0
    for numbers, batch in passes(task, encoded, bounds):
        if known is None:
            yield numbers, batch, score_batch(engine, batch, row, text)
        else:
            yield numbers, batch, known.score(batch, row[0])
        done += len(numbers)
        if progress is not None:
            progress(done, len(encoded))

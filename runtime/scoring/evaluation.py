"""Loss, metric and answers over a whole set of examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine
from ..errors import DataError, EngineError
from ..tasks import Batch, Encoded, Prediction, Task, need_labels
from .batch_loss import passes
from .confusion import Confusion
from .known_forwards import KnownForwards
from .values import Values


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
    confusion: Confusion | None = field(default=None, repr=False)
    """Counts by right and given answer, with macro-F1 and the share of the most frequent answer;
    None where there is nothing to choose."""

    def __str__(self) -> str:
        return f"held-out loss {self.loss:.4g}, metric {self.metric:.4g}"


def evaluate(
    engine: Engine,
    task: Task,
    encoded: Sequence[Encoded],
    values: Values,
    bounds: Bounds,
    progress: Callable[[int, int], None] | None = None,
    known: KnownForwards | None = None,
) -> Evaluation:
    """Evaluate ``values`` on all of ``encoded``.

    Args:
        progress: called with the examples done and their total after every pass.
        known: of this engine, for examples that come again while what the program takes stands
            still.

    Raises:
        DataError: no examples, or one has no label.
        TuningError: the values are not this program's, or not for this task.
    """
    need_labels(encoded, "example")
    loss = 0.0
    totals = np.zeros(2)
    forwards, before = 0, 0 if known is None else known.calls
    right, given = [], []
    for _, batch, logp in _forwards(engine, task, encoded, values, bounds, progress, known):
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
    values: Values,
    bounds: Bounds,
    progress: Callable[[int, int], None] | None = None,
    known: KnownForwards | None = None,
) -> list[Prediction]:
    """The answer to each of ``encoded``, in their order; arguments as of ``evaluate``.

    Raises:
        DataError: no examples.
        EngineError: scores of one are not finite.
    """
    answers: dict[int, Prediction] = {}
    passed = _forwards(engine, task, encoded, values, bounds, progress, known)
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
    values: Values,
    bounds: Bounds,
    progress: Callable[[int, int], None] | None,
    known: KnownForwards | None,
) -> Iterator[tuple[list[int], Batch, NDArray[np.float32]]]:
    """Indices, batch and log-probabilities ``[1, N, C]`` of each pass."""
    if not encoded:
        raise DataError("no examples to evaluate on")
    values = values.for_task(task, engine)
    done = 0
    for numbers, batch in passes(task, encoded, bounds):
        logp = values.score(engine, batch) if known is None else known.score(batch, values)
        yield numbers, batch, logp
        done += len(numbers)
        if progress is not None:
            progress(done, len(encoded))

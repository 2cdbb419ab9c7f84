"""Loss, metric and answers over a whole set of examples, and which answers were given where which
were right: what a mere share of right answers hides."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..engines import Engine
from ..errors import DataError, EngineError
from ..tasks import Batch, Encoded, Prediction, Task, need_labels
from .batch_loss import passes
from .known_forwards import KnownForwards
from .values import Values


@dataclass(frozen=True)
class Confusion:
    """Counts of rows by right and by given answer."""

    labels: tuple[str, ...]
    """The A answers that there are to choose from."""
    counts: tuple[tuple[int, ...], ...]
    """``[A, A + 1]``: by right answer, then by given answer; the last column counts rows that got
    none, because their scores were not finite."""

    @classmethod
    def of(
        cls, labels: Sequence[str], right: NDArray[np.int64], given: NDArray[np.int64]
    ) -> "Confusion":
        """Count rows.

        Args:
            right: int64 ``[rows]``, indices of ``labels``.
            given: the same, or -1 for no answer.
        """
        counts = np.zeros((len(labels), len(labels) + 1), np.int64)
        np.add.at(counts, (right, given), 1)  # -1 is the last column
        return cls(tuple(labels), tuple(tuple(map(int, row)) for row in counts))

    @property
    def most_frequent(self) -> str:
        """The right answer of the most rows, the first of equals."""
        return self.labels[int(np.argmax([sum(row) for row in self.counts]))]

    @property
    def most_frequent_share(self) -> float:
        """Of the rows: the accuracy of whoever always gives that answer."""
        rows = [sum(row) for row in self.counts]
        return max(rows) / sum(rows)

    @property
    def macro_f1(self) -> float:
        """Mean over answers of F1, the harmonic mean of precision and recall, each answer counting
        alike however rare it is. Answers that are neither right nor given anywhere do not count."""
        counts = np.array(self.counts)
        hits = counts.diagonal()
        # F1 = 2 hits / (right + given), which is 0 where an answer is never right or never given.
        either = counts.sum(axis=1) + counts.sum(axis=0)[:-1]
        there = either > 0
        return float((2 * hits[there] / either[there]).mean())

    @property
    def warning(self) -> str | None:
        """What to say where always giving the most frequent answer does as well or better."""
        right, total = sum(row[n] for n, row in enumerate(self.counts)), sum(map(sum, self.counts))
        if right > self.most_frequent_share * total:
            return None
        return (
            f"accuracy {right / total:.1%} is no better than always answering "
            f"{self.most_frequent!r}, which is right for {self.most_frequent_share:.1%} of these "
            f"{total} rows"
        )


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

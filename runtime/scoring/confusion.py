"""Which answers were given where which were right: what a mere share of right answers hides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

"""What tasks of choosing an answer share: the label, and from scores loss, metric and answer."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .field_checks import field_text
from .task import Batch, Prediction, Setting, Task

_LABELS_SHOWN = 20
_WHOLE = re.compile(r"(-?\d+)\.0+")


class Choosing(Task):
    """One of several answers is right; the loss is the cross-entropy over their scores.

    Args:
        label_field: field with the right answer's label, compared as text.
        labels: of the answers.
    """

    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self, spec: Mapping[str, Any], setting: Setting, label_field: str, labels: Sequence[str]
    ) -> None:
        super().__init__(spec, setting)
        self.labels = tuple(labels)
        self.answers = len(self.labels)
        self._label_field = label_field

    @abstractmethod
    def _scores(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Score of each answer, float64 ``[P, examples, A]``, from float32 ``[P, N, C]``."""

    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        scores = self._scores(logp, batch)
        # Log-softmax over the answers alone: their probabilities, renormalised.
        gold = np.take_along_axis(scores, batch.gold[None, :, None], axis=2)[:, :, 0]
        return np.asarray(np.logaddexp.reduce(scores, axis=2) - gold)

    def slopes(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        shares = self._shares(logp, batch)
        shares[np.arange(batch.examples), batch.gold] -= 1
        return self._by_logp(shares, batch)

    @abstractmethod
    def _by_logp(self, by_scores: NDArray[np.float64], batch: Batch) -> NDArray[np.float64]:
        """From a gradient by ``_scores`` of one probe, float64 ``[examples, A]``, that by its
        log-probabilities, float64 ``[N, C]``."""

    def _shares(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Probability of each answer, float64 ``[examples, A]``, from one probe's ``[N, C]``."""
        scores = self._scores(logp[None], batch)[0]
        return np.asarray(np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None]))

    def metric(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        right = self.chosen(logp, batch) == batch.gold
        return np.stack([right, np.ones(batch.examples)], axis=1).astype(np.float64)

    def chosen(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.int64]:
        scores = self._scores(logp[None], batch)[0]
        # argmax would call the first not-a-number an answer.
        return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))

    def predict(self, logp: NDArray[np.float32], batch: Batch) -> list[Prediction]:
        return [
            Prediction(
                self.labels[int(row.argmax())],
                {label: float(share) for label, share in zip(self.labels, row, strict=True)},
            )
            for row in self._shares(logp, batch)
        ]

    def _gold(self, row: Mapping[str, Any], where: str, labelled: bool) -> int:
        """Index of the row's label; -1 if it is left out.

        Raises:
            DataError: no label, or an unknown one.
        """
        if not labelled:
            return -1
        label = field_text(row, self._label_field, where)
        for form in _forms(label):
            if form in self.labels:
                return self.labels.index(form)
        known = [name if name.isprintable() else repr(name) for name in self.labels]
        if len(known) > _LABELS_SHOWN:
            known = [*known[:_LABELS_SHOWN], f"and {len(known) - _LABELS_SHOWN} more"]
        raise DataError(f"{where}: unknown label {label[:60]!r}; known labels: {', '.join(known)}")


def _forms(label: str) -> list[str]:
    """A label, and what tables make of it: 1 becomes 1.0 beside empty cells, true becomes True."""
    whole = _WHOLE.fullmatch(label)
    if whole is not None:
        return [label, whole[1]]
    return [label, label.lower()] if label in ("True", "False", "TRUE", "FALSE") else [label]

"""Multiple choice: every choice is scored whole as a continuation of the prompt.

The score of a choice is the mean log-probability of its tokens, as MeZO scores COPA.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..bundle import Bounds
from ..errors import DataError
from .continuation import Continuation, continuation
from .task import Batch, Encoded, Observation, Prediction, Task
from .template import Template, field_text


class MultipleChoice(Task):
    """One row a choice; the loss is the cross-entropy over the choices' scores.

    Args:
        choice_fields: the fields that hold the choices.
        label_field: field with the index of the right choice, from 0.
    """

    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    head_rows = 1

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        bounds: Bounds,
        pad_id: int,
        truncate: bool,
        *,
        choice_fields: Sequence[str],
        label_field: str,
    ) -> None:
        super().__init__(template, tokenizer, bounds, pad_id, truncate)
        if len(choice_fields) < 2:
            raise DataError("task: choice_fields must name at least two fields")
        self._choice_fields = tuple(choice_fields)
        self.answers = len(self._choice_fields)
        self._label_field = label_field

    def encode(self, row: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
        gold = -1
        if labelled:
            label = field_text(row, self._label_field, where)
            known = [str(index) for index in range(len(self._choice_fields))]
            if label not in known:
                raise DataError(
                    f"{where}: unknown label {label!r}; known labels: {', '.join(known)}"
                )
            gold = int(label)
        choices = [field_text(row, name, where) for name in self._choice_fields]

        def rows_of(fields: Mapping[str, str]) -> list[Continuation]:
            prompt = self.template.render(fields)
            return [
                continuation(prompt, _joined(prompt, choice), self._tokenizer, where)
                for choice in choices
            ]

        fields = self._fit(
            row, where, lambda fields: max(len(choice.tokens) for choice in rows_of(fields))
        )
        rows = rows_of(fields)
        positions: list[tuple[int, int]] = []
        candidates: list[list[int]] = []
        for index, choice in enumerate(rows):
            places, ids = choice.scored(index)
            positions += places
            candidates += ids
        return self._encoded([choice.tokens for choice in rows], positions, candidates, gold, where)

    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        scores = self._scores(logp, batch)
        gold = np.take_along_axis(scores, batch.gold[None, :, None], axis=2)[:, :, 0]
        return np.asarray(np.logaddexp.reduce(scores, axis=2) - gold)

    def metric(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        scores = self._scores(logp[None], batch)[0]
        # argmax would call the first not-a-number an answer.
        right = (scores.argmax(axis=1) == batch.gold) & ~np.isnan(scores).any(axis=1)
        return np.stack([right, np.ones(batch.examples)], axis=1).astype(np.float64)

    def predict(self, logp: NDArray[np.float32], batch: Batch) -> list[Prediction]:
        scores = self._scores(logp[None], batch)[0]
        shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])
        return [
            Prediction(
                str(int(row.argmax())),
                {str(index): float(share) for index, share in enumerate(row)},
            )
            for row in shares
        ]

    def observe(
        self, logp: NDArray[np.float32], inputs: NDArray[np.float32], batch: Batch
    ) -> Observation:
        # A choice's score is a mean over its tokens, and so is what an answer head adds to it.
        rows, width = len(batch.tokens), inputs.shape[1]
        means = np.zeros((rows, width), np.float32)
        np.add.at(means, batch.row_of, inputs)
        means /= np.bincount(batch.row_of, minlength=rows)[:, None].astype(np.float32)
        features = means.reshape(batch.examples, self.answers, width)
        return Observation(self._scores(logp[None], batch)[0], features, batch.gold)

    def _scores(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Mean log-probability of each choice, float64 ``[P, examples, choices]``."""
        rows = len(batch.tokens)
        count = np.bincount(batch.row_of, minlength=rows)
        sums = np.stack(
            [np.bincount(batch.row_of, weights=probe, minlength=rows) for probe in logp[:, :, 0]]
        )
        return (sums / count).reshape(len(logp), batch.examples, len(self._choice_fields))


def _joined(prompt: str, choice: str) -> str:
    """The choice with a space before it, unless prompt or choice bring one."""
    spaced = not prompt or prompt[-1].isspace() or choice[:1].isspace()
    return choice if spaced else " " + choice

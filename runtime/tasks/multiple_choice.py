"""Multiple choice: every choice is scored whole as a continuation of the prompt.

The score of a choice is the mean log-probability of its tokens, as MeZO scores COPA.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import field_checks
from .choosing import Choosing
from .field_checks import field_text
from .task import Batch, Encoded, Observation, Setting
from .tokenising import Continuation, continuation


class MultipleChoice(Choosing):
    """One row a choice. ``choice_fields`` hold the choices, and the label is the index of the right
    one, from 0."""

    fields: ClassVar = {
        "template": field_checks.template,
        "choice_fields": field_checks.names,
        "label_field": field_checks.name,
    }
    head_rows = 1

    def __init__(self, spec: Mapping[str, Any], setting: Setting) -> None:
        self._choice_fields = tuple(spec["choice_fields"])
        labels = [str(index) for index in range(len(self._choice_fields))]
        super().__init__(spec, setting, spec["label_field"], labels)
        self._begin_with(self.template.start)

    def encode(self, row: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
        gold = self._gold(row, where, labelled)
        choices = [field_text(row, name, where) for name in self._choice_fields]

        def rows_of(fields: Mapping[str, str]) -> list[Continuation]:
            prompt = self.template.render(fields)
            return [
                continuation(prompt, _joined(prompt, choice), self._front, where)
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

    def shortest_row(self) -> dict[str, Any]:
        choices = dict.fromkeys(self._choice_fields, " a")
        return super().shortest_row() | choices | {self._label_field: "0"}

    def _scores(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Mean log-probability of each choice."""
        rows = len(batch.tokens)
        count = np.bincount(batch.row_of, minlength=rows)
        sums = np.stack(
            [np.bincount(batch.row_of, weights=probe, minlength=rows) for probe in logp[:, :, 0]]
        )
        return (sums / count).reshape(len(logp), batch.examples, self.answers)

    def _by_logp(self, by_scores: NDArray[np.float64], batch: Batch) -> NDArray[np.float64]:
        count = np.bincount(batch.row_of, minlength=len(batch.tokens))
        return np.asarray((by_scores.reshape(-1) / count)[batch.row_of, None])


def _joined(prompt: str, choice: str) -> str:
    """The choice with a space before it, unless prompt or choice bring one."""
    spaced = not prompt or prompt[-1].isspace() or choice[:1].isspace()
    return choice if spaced else " " + choice

"""Tasks whose answer is text: their loss, and language modelling of a text behind a prompt."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from . import field_checks
from .field_checks import field_text
from .task import Batch, Encoded, Prediction, Setting, Task
from .tokenising import Continuation, continuation, shorten, tokenise


class TokenLoss(Task):
    """Every scored position has the one token that stands behind it as its candidate."""

    metric_name: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False
    writes = True

    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        sums = np.stack([self._totals(probe, batch) for probe in logp])
        return np.asarray(sums[:, :, 0] / sums[:, :, 1])

    def slopes(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        tokens = self._totals(logp, batch)[:, 1]
        return np.asarray(-1 / tokens[batch.row_of, None])

    def metric(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        return self._totals(logp, batch)

    @staticmethod
    def aggregate(totals: NDArray[np.float64]) -> float:
        """Perplexity over all tokens; infinite where it exceeds float64."""
        with np.errstate(over="ignore"):
            return float(np.exp(totals[0] / totals[1]))

    def predict(self, logp: NDArray[np.float32], batch: Batch) -> list[Prediction]:
        return [
            Prediction(None, {"nll": float(nll / tokens), "tokens": float(tokens)})
            for nll, tokens in self._totals(logp, batch)
        ]

    @staticmethod
    def _totals(logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        """Summed negative log-likelihood and number of tokens, float64 ``[examples, 2]``."""
        nll = np.bincount(batch.row_of, weights=-logp[:, 0], minlength=batch.examples)
        count = np.bincount(batch.row_of, minlength=batch.examples)
        return np.stack([nll, count], axis=1).astype(np.float64)


class Completion(TokenLoss):
    """One row an example; the loss is the mean negative log-likelihood of the completion's tokens.

    ``completion_field`` holds the text to learn; nothing is put between prompt and completion.
    Behind it stands the model's own end, one more token to learn and to score, unless ``end`` is
    false (for pieces of a longer text) or the model has none. With ``truncate``, a completion that
    alone takes more than half of the bound gives way before the prompt does, and has no end then.
    """

    fields: ClassVar = {
        "template": field_checks.template,
        "completion_field": field_checks.name,
    }
    optional: ClassVar = {"end": field_checks.flag}

    def __init__(self, spec: Mapping[str, Any], setting: Setting) -> None:
        super().__init__(spec, setting)
        self._begin_with(self.template.start)
        self._completion_field: str = spec["completion_field"]
        self._ends = setting.ends
        self.ends = spec.get("end", bool(setting.ends))
        if self.ends and not setting.ends:
            raise DataError(
                'task: "end" is true, but the model names no token that ends a text; leave the '
                "field out"
            )

    def encode(self, row: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
        text = whole_text = field_text(row, self._completion_field, where)
        if self._truncate:
            text = self._within_half(text)

        def joined(fields: Mapping[str, str]) -> Continuation:
            found = continuation(self.template.render(fields), text, self._front, where)
            if self.ends and text == whole_text and found.tokens[-1] not in self._ends:
                found.tokens.append(self._ends[0])
            return found

        fields = self._fit(row, where, lambda fields: len(joined(fields).tokens))
        whole = joined(fields)
        positions, candidates = whole.scored(0)
        return self._encoded([whole.tokens], positions, candidates, 0, where)

    def prompt(self, row: Mapping[str, Any], where: str) -> list[int] | None:
        if row.get(self._completion_field) is not None:
            return None
        text = self.template.render(self.template.fields_of(row, where))
        return list(tokenise(self._tokenizer, text).ids)

    def shortest_row(self) -> dict[str, Any]:
        return super().shortest_row() | {self._completion_field: " a"}

    def _within_half(self, text: str) -> str:
        """``text`` cut to half of the length bound, all of it if the template has no field."""
        room = self._bounds.length // 2 if self.template.names else self._bounds.length
        room -= self.ends
        # Special tokens count too: the joined text has them.
        while (count := len(tokenise(self._tokenizer, text).ids)) > room and text:
            text = shorten(text, count - room, self._tokenizer)
        return text

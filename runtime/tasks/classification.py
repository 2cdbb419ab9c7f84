"""Classification by label words: the model's next token after the prompt names the label.

Prompts and label words as in MeZO (Malladi et al. 2023, arXiv 2305.17333, appendix E.2).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..bundle import Bounds
from ..errors import DataError
from .task import Batch, Encoded, Observation, Prediction, Task
from .template import Template, field_text


class Classification(Task):
    """One row an example; its last token's hidden state is scored at every label's first token.

    Args:
        label_field: field with the label, compared as text.
        verbalisers: label to the text that continues the prompt, such as ``{"1": " great"}``.
        whole_vocabulary: loss is the negative log-likelihood of the label word among all tokens
            instead of among the label words.
    """

    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        bounds: Bounds,
        pad_id: int,
        truncate: bool,
        *,
        label_field: str,
        verbalisers: Mapping[str, str],
        whole_vocabulary: bool,
    ) -> None:
        super().__init__(template, tokenizer, bounds, pad_id, truncate)
        if len(verbalisers) < 2:
            raise DataError("task: verbalisers must name at least two labels")
        self.labels = tuple(verbalisers)
        self._label_field = label_field
        self._words = tuple(verbalisers.values())
        self._whole_vocabulary = whole_vocabulary
        self.answers = self.head_rows = 0 if whole_vocabulary else len(self.labels)

    def encode(self, row: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
        gold = -1
        if labelled:
            label = field_text(row, self._label_field, where)
            if label not in self.labels:
                raise DataError(
                    f"{where}: unknown label {label!r}; known labels: {', '.join(self.labels)}"
                )
            gold = self.labels.index(label)
        fields = self._fit(row, where, lambda fields: len(self._ids(self.template.render(fields))))
        prompt = self.template.render(fields)
        tokens = self._ids(prompt)
        if not tokens:
            raise DataError(f"{where}: the prompt is empty")
        candidates = [self._first_token(prompt, tokens, word, where) for word in self._words]
        if len(set(candidates)) < len(candidates):
            raise DataError(
                f"{where}: two labels begin with the same token "
                f"({', '.join(map(repr, self._words))}); choose verbalisers that differ at once"
            )
        return self._encoded([tokens], [(0, len(tokens) - 1)], [candidates], gold, where)

    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        scores = logp.astype(np.float64)
        gold = np.take_along_axis(scores, batch.gold[None, :, None], axis=2)[:, :, 0]
        if self._whole_vocabulary:
            return -gold
        # Log-softmax over the label words alone: their probabilities, renormalised.
        return np.asarray(np.logaddexp.reduce(scores, axis=2) - gold)

    def metric(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        # argmax would call the first not-a-number an answer.
        right = (logp.argmax(axis=1) == batch.gold) & ~np.isnan(logp).any(axis=1)
        return np.stack([right, np.ones(batch.examples)], axis=1).astype(np.float64)

    def predict(self, logp: NDArray[np.float32], batch: Batch) -> list[Prediction]:
        scores = logp.astype(np.float64)
        shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])
        return [
            Prediction(
                self.labels[int(row.argmax())],
                {label: float(share) for label, share in zip(self.labels, row, strict=True)},
            )
            for row in shares
        ]

    def observe(
        self, logp: NDArray[np.float32], inputs: NDArray[np.float32], batch: Batch
    ) -> Observation:
        return Observation(logp.astype(np.float64), inputs[:, None], batch.gold)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def _first_token(self, prompt: str, tokens: list[int], word: str, where: str) -> int:
        """The token that follows the prompt when ``word`` does.

        Raises:
            DataError: the tokenizer merges the word into the prompt's last token, so that the
                prompt alone could never be followed by it.
        """
        both = self._ids(prompt + word)
        if both[: len(tokens)] != tokens or len(both) == len(tokens):
            raise DataError(
                f"{where}: verbaliser {word!r} merges with the end of the prompt {prompt[-20:]!r}; "
                "begin it with a space, or end the template without one"
            )
        return both[len(tokens)]

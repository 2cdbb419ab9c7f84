"""Classification by label words: the model's next token after the prompt names the label.

Prompts and label words as in MeZO (Malladi et al. 2023, arXiv 2305.17333, appendix E.2).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, warn
from . import field_checks
from .choosing import Choosing
from .task import Batch, Encoded, Observation, Setting
from .tokenising import tokenise

_WORDS_SHOWN = 5


class Classification(Choosing):
    """One row an example; its last token's hidden state is scored at every label's first token.

    ``verbalisers`` maps each label to the text that continues the prompt, such as
    ``{"1": " great"}``.

    The answers stand in the order of their labels, sorted as text, whatever order ``verbalisers``
    lists them in: a specification says the same after a reader that keeps no order of keys.

    ``demonstrations``, which may be left out, are rows with their labels that stand in front of
    every prompt, each with its word and a line's end (in-context learning, Brown et al. 2020, arXiv
    2005.14165): what the states behind them say of the answer is plainer.
    """

    fields: ClassVar = {
        "template": field_checks.template,
        "label_field": field_checks.name,
        "verbalisers": field_checks.verbalisers,
    }
    optional: ClassVar = {"demonstrations": field_checks.rows}

    def __init__(self, spec: Mapping[str, Any], setting: Setting) -> None:
        words: Mapping[str, str] = spec["verbalisers"]
        super().__init__(spec, setting, spec["label_field"], sorted(words))
        self._words = tuple(words[label] for label in self.labels)
        self.head_rows = len(self.labels)
        self._shown = "".join(
            self._demonstration(row, f"task: demonstration {number}")
            for number, row in enumerate(spec.get("demonstrations", ()), start=1)
        )
        self._begin_with(self._shown + self.template.start)
        if self._shown:
            shown = len(tokenise(self._tokenizer, self._shown).ids)
            bound = self._bounds.length + self._bounds.prefix
            if shown >= bound:
                raise DataError(
                    f"task: the demonstrations alone have {shown} tokens, a row has {bound} at "
                    "most; give fewer or shorter ones, or export with a larger --length"
                )
        self._look_at_words()

    def encode(self, row: Mapping[str, Any], where: str, *, labelled: bool = True) -> Encoded:
        gold = self._gold(row, where, labelled)
        fields = self._fit(row, where, lambda fields: len(self._ids(self._prompt(fields))))
        prompt = self._prompt(fields)
        tokens = self._ids(prompt)
        if not tokens:
            raise DataError(f"{where}: the prompt is empty")
        own = [self._tokens_after(prompt, tokens, word) for word in self._words]
        for word, ids in zip(self._words, own, strict=True):
            if not ids:
                raise DataError(
                    f"{where}: verbaliser {word!r} merges with the end of the prompt "
                    f"{prompt[-20:]!r}; begin it with a space, or end the template without one"
                )
        candidates = [ids[0] for ids in own]
        if len(set(candidates)) < len(candidates):
            self._refuse_equal_words(where)
        return self._encoded([tokens], [(0, len(tokens) - 1)], [candidates], gold, where)

    def observe(
        self, logp: NDArray[np.float32], inputs: NDArray[np.float32], batch: Batch
    ) -> Observation:
        return Observation(logp.astype(np.float64), inputs[:, None], batch.gold)

    def shortest_row(self) -> dict[str, Any]:
        return super().shortest_row() | {self._label_field: self.labels[0]}

    def _scores(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        return logp.astype(np.float64)

    def _by_logp(self, by_scores: NDArray[np.float64], batch: Batch) -> NDArray[np.float64]:
        return by_scores

    def _demonstration(self, row: Mapping[str, Any], where: str) -> str:
        word = self._words[self._gold(row, where, True)]
        return f"{self.template.render(self.template.fields_of(row, where))}{word}\n"

    def _prompt(self, fields: Mapping[str, str]) -> str:
        return self._shown + self.template.render(fields)

    def _ids(self, text: str) -> list[int]:
        """The tokens of a prompt, behind the prefix."""
        return self._front.behind(text)[0]

    def _tokens_after(self, prompt: str, tokens: list[int], word: str) -> list[int]:
        """The tokens that follow the prompt's when ``word`` follows the prompt.

        None of them if the tokenizer merges the word into the prompt's last token, so that the
        prompt alone could never be followed by it.
        """
        both = self._ids(prompt + word)
        return both[len(tokens) :] if both[: len(tokens)] == tokens else []

    def _look_at_words(self) -> None:
        """Warn of words that are not scored as they stand, after a prompt of short texts.

        Raises:
            DataError: two of them begin with the same token.
        """
        prompt = self._prompt(dict.fromkeys(self.template.names, "a"))
        tokens = self._ids(prompt)
        own = {word: self._tokens_after(prompt, tokens, word) for word in self._words}
        firsts = [ids[0] for ids in own.values() if ids]
        if len(set(firsts)) < len(firsts):
            self._refuse_equal_words("task")
        glued = [word for word in own if _needs_space(prompt, word)]
        if glued:
            warn(
                f"task: verbaliser {glued[0]!r} follows {prompt[-20:]!r} without a space; write "
                + ", ".join(repr(" " + word) for word in glued[:_WORDS_SHOWN])
            )
        cut = [word for word, ids in own.items() if len(ids) > 1]
        if cut:
            shown = ", ".join(
                f"{self._tokenizer.decode(own[word][:1])!r} of {word!r}"
                for word in cut[:_WORDS_SHOWN]
            )
            warn(
                f"task: of a verbaliser only the first token is scored: {shown}; choose words of "
                "one token, or let the rows hold the answers and make it a multiple_choice task"
            )

    def _refuse_equal_words(self, where: str) -> None:
        raise DataError(
            f"{where}: two labels begin with the same token "
            f"({', '.join(map(repr, self._words))}); choose verbalisers that differ at once"
        )


def _needs_space(prompt: str, word: str) -> bool:
    """Whether two words run together, in a script that puts spaces between them and has case."""
    cased = word[0].lower() != word[0].upper()
    return cased and prompt != "" and (prompt[-1].isalnum() or prompt[-1] in ".,:;!?)")

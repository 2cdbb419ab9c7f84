"""Completion: plain language modelling of a text that follows a prompt."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..errors import DataError
from . import spec_fields
from .continuation import Continuation, continuation
from .field_text import field_text
from .task import Encoded, Setting
from .template import shorten
from .token_loss import TokenLoss
from .tokenising import tokenise


class Completion(TokenLoss):
    """One row an example; the loss is the mean negative log-likelihood of the completion's tokens.

    ``completion_field`` holds the text to learn; nothing is put between prompt and completion.
    Behind it stands the model's own end, one more token to learn and to score, unless ``end`` is
    false (for pieces of a longer text) or the model has none. With ``truncate``, a completion that
    alone takes more than half of the bound gives way before the prompt does, and has no end then.
    """

    fields: ClassVar = {
        "template": spec_fields.template,
        "completion_field": spec_fields.name,
    }
    optional: ClassVar = {"end": spec_fields.flag}

    def __init__(self, spec: Mapping[str, Any], setting: Setting) -> None:
        super().__init__(spec, setting)
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
            found = continuation(self.template.render(fields), text, self._tokenizer, where)
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

    def made_up_row(self, texts: Sequence[str], chosen: random.Random) -> dict[str, Any]:
        row = super().made_up_row(texts, chosen)
        return row | {self._completion_field: " " + chosen.choice(texts)}

    def _within_half(self, text: str) -> str:
        """``text`` cut to half of the length bound, all of it if the template has no field."""
        room = self._bounds.length // 2 if self.template.names else self._bounds.length
        room -= self.ends
        # Special tokens count too: the joined text has them.
        while (count := len(tokenise(self._tokenizer, text).ids)) > room and text:
            text = shorten(text, count - room, self._tokenizer)
        return text

"""Messages may name the model's control tokens, such as ``<|im_end|>``, but not give them.

transformers tokenises what a chat template wrote as one text, in which nothing tells the template's
control tokens from those that a message brings along: whoever writes ``<|im_end|>`` ends the turn
and can go on as another role. Here such text is read letter by letter, as any other is. While the
template renders, one private character stands for each, and is a token of its own in a copy of the
tokenizer, so that the text around it is cut as around the control token itself.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from .tokenising import tokenise

_PRIVATE = range(0xF0000, 0xFFFFE)
"""Plane 15, which Unicode leaves to private use."""


class Tokens(NamedTuple):
    """Of a rendered conversation."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Each token's characters in the text."""


class ControlTokens:
    """Of a tokenizer: what it calls special."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        texts = sorted((each.content for each in added if each.special), key=len, reverse=True)
        self.texts = tuple(texts)
        """The longest first, since one may begin with another."""
        self._stand_ins: dict[str, int | None] = {}

    @cached_property
    def _copy(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer.to_str())

    @cached_property
    def _literal(self) -> Tokenizer:
        """Takes control tokens for the text that they are."""
        copy = Tokenizer.from_str(self.tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> "Conversation":
        """Of messages as they were given."""
        return Conversation(self, messages)

    def tokenise(self, text: str, named: Mapping[str, str]) -> Tokens:
        """``text``, in which each character of ``named`` stands for the control token it names."""
        if not named:
            encoding = tokenise(self.tokenizer, text, special=False)
            return Tokens(list(encoding.ids), list(encoding.offsets))
        self._copy.add_tokens([AddedToken(each, normalized=False) for each in named])
        for each in named:
            self._stand_ins[each] = self._copy.token_to_id(each)
        of_token = {token: each for each, token in self._stand_ins.items()}
        encoding, found = tokenise(self._copy, text, special=False), Tokens([], [])
        for token, offsets in zip(encoding.ids, encoding.offsets, strict=True):
            ids, stand_in = [token], of_token.get(token)
            if stand_in is not None:  # in another conversation it may be just that character
                told = named.get(stand_in, stand_in)
                ids = list(tokenise(self._literal, told, special=False).ids)
            found.ids.extend(ids)
            found.offsets.extend([offsets] * len(ids))
        return found


class Conversation:
    """Messages for a template to render, and the way from what it made of them to tokens."""

    def __init__(self, controls: ControlTokens, messages: Sequence[Mapping[str, Any]]) -> None:
        self._controls = controls
        texts = [text for message in messages for text in _spoken(message).values()]
        named = [each for each in controls.texts if any(each in text for text in texts)]
        free = (chr(place) for place in _PRIVATE if not any(chr(place) in text for text in texts))
        stand_ins = dict(zip(named, free, strict=False))
        self._named = {stand_in: text for text, stand_in in stand_ins.items()}
        self.messages = [dict(message) for message in messages]
        """As given, but for the control tokens named in them."""
        if named:
            pattern = re.compile("|".join(map(re.escape, named)))
            for message in self.messages:
                for field, text in _spoken(message).items():
                    message[field] = pattern.sub(lambda found: stand_ins[found[0]], text)

    def tokenise(self, text: str) -> Tokens:
        """What a template made of ``messages``, or of some of them."""
        return self._controls.tokenise(text, self._named)


def _spoken(message: Mapping[str, Any]) -> dict[str, str]:
    """Text of a message that whoever wrote it chose."""
    return {
        field: value
        for field, value in message.items()
        if field != "role" and isinstance(value, str)
    }

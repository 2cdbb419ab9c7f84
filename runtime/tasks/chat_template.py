"""A model's own chat template: messages to the text and the tokens that it was trained to see.

Messages may name the model's control tokens, such as ``<|im_end|>``, but not give them.
transformers tokenises what a template wrote as one text: whoever writes ``<|im_end|>`` ends the
turn and can go on as another role. Here a private character stands for each control token that the
template itself holds, and is a token of its own in a copy of the tokenizer to which all control
tokens are mere text. So whatever a template does with the texts of messages, be it to join, strip
or lower-case them, a control token is one that the template wrote.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from ..errors import DataError
from .field_checks import LONGEST, check_text, described, strings_in
from .jinja_template import compiled, constants, named_in, pattern, replaced
from .row_formats import strict_json
from .tokenising import tokenise

Message = Mapping[str, Any]
"""``role`` and ``content``, both text, and what else a template reads; ``name`` for a sender."""
ROLES = ("system", "user", "assistant")
_PRIVATE = range(0xF0000, 0x10FFFE)
"""Planes 15 and 16, which Unicode leaves to private use."""
_PROBES = (
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}],
    [{"role": "user", "content": "a", "name": "a"}],
)


class ChatTemplate:
    """How a model writes conversations.

    Args:
        source: the Jinja template.
        special_tokens: what it may name, such as ``bos_token``, to its text.
        tokenizer: the model's, which says what are control tokens.

    Raises:
        DataError: jinja2 is not installed, or the template is none.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], tokenizer: Tokenizer
    ) -> None:
        self._source, self._special_tokens = source, dict(special_tokens)
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.controls = {each.content: (number, each) for number, each in added.items()
                         if each.special}  # fmt: skip
        """Text of each control token to its number and what the tokenizer knows of it."""
        self._forms: list[_Form] = []
        written = named_in(self.controls, "\n".join(constants(source, self._special_tokens)))
        self.joined: frozenset[str] = frozenset()
        """Control tokens that it makes of pieces, such as ``<|`` and a role."""
        plain = _Form(self, sorted(written), frozenset(source))
        self.joined = frozenset(_joined(plain, self.controls))
        self.written = sorted({*written, *self.joined})
        """Control tokens that it can write."""

    def conversation(self, messages: Sequence[Message]) -> "Conversation":
        """To render messages, or some of them, and to make tokens of it.

        Raises:
            DataError: nested too deeply, or they hold all private characters.
        """
        return Conversation(self, messages)

    def answering(self, messages: Sequence[Message], where: str) -> list[int]:
        """The tokens that an answer to ``messages`` follows.

        Raises:
            DataError: the template refuses them; the message begins with ``where``.
        """
        conversation = self.conversation(messages)
        return conversation.tokenise(
            conversation.render(messages, answer=True, where=where), where
        ).ids

    def form(self, texts: frozenset[str]) -> "_Form":
        """With stand-ins that none of the characters ``texts`` are."""
        for form in self._forms:
            if texts.isdisjoint(form.named):
                return form
        self._forms.append(_Form(self, self.written, texts | frozenset(self._source)))
        del self._forms[:-4]
        return self._forms[-1]

    def mapped(self, value: Any, letters: Mapping[str, str]) -> Any:
        """A message with other letters in all of its text, but for names that the template reads
        fields by."""
        if isinstance(value, str):
            return replaced(value, letters)
        if isinstance(value, Mapping):
            return {
                name if str(name) in self._source else self.mapped(name, letters): self.mapped(
                    part, letters
                )
                for name, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.mapped(part, letters) for part in value]
        return value

    def compiled(self, stand_ins: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
        """The Jinja template and what it may name, with stand-ins for control tokens."""
        return compiled(self._source, stand_ins), {
            name: replaced(text, stand_ins) for name, text in self._special_tokens.items()
        }


class TokenisedText(NamedTuple):
    """A rendered conversation."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Each token's characters in the text."""


class Conversation:
    """Messages for a template to render, and the way from what it makes of them to tokens."""

    def __init__(self, template: ChatTemplate, messages: Sequence[Message]) -> None:
        self._template, self.messages = template, [dict(message) for message in messages]
        self._texts = frozenset().union(*map(frozenset, strings_in(self.messages)))
        self._form = template.form(self._texts)

    def render(self, messages: Sequence[Message], *, answer: bool, where: str) -> str:
        """The text of some of the messages, with a private character for each control token; with
        ``answer`` also what an answer follows.

        Raises:
            DataError: the template refuses them; the message begins with ``where``.
        """
        text = self._form.render(messages, answer=answer, where=where)
        found = named_in(self._template.joined, text)
        return self._with_joined(text, found, messages, answer, where) if found else text

    def plain(self, text: str) -> str:
        """What ``render`` gave, as it is read: control tokens by their names."""
        return replaced(text, self._form.named)

    def tokenise(self, text: str, where: str) -> TokenisedText:
        """What ``render`` gave, in tokens.

        Raises:
            DataError: the tokenizer makes a control token of what is mere text to it.
        """
        form, tokens = self._form, TokenisedText([], [])
        encoding = tokenise(form.tokenizer, text, special=False)
        for token, offsets in zip(encoding.ids, encoding.offsets, strict=True):
            if token in form.forbidden:
                raise DataError(
                    f"{where}: the tokenizer takes {text[slice(*offsets)][:40]!r} for a control "
                    "token, though it is only text here; leave it out"
                )
            tokens.ids.append(form.control_of.get(token, token))
            tokens.offsets.append(offsets)
        return tokens

    def _with_joined(
        self, text: str, found: set[str], messages: Sequence[Message], answer: bool, where: str
    ) -> str:
        """``text``, in which control tokens have a stand-in that the template makes of pieces.

        It has none of its characters from a message: that is so where it stays when each of these
        characters is another one in the messages, one for one.
        """
        taken = {
            each for part in found for letter in part for each in (letter.lower(), letter.upper())
        }
        free = _free(self._texts | frozenset(text), len(taken))
        other = dict(zip(sorted(taken), free, strict=True))
        changed = [
            {**self._template.mapped(message, other), "role": message["role"]}
            for message in messages
        ]
        again = self._form.render(changed, answer=answer, where=where)
        back = str.maketrans({stand_in: letter for letter, stand_in in other.items()})
        if again.translate(back) != text:
            raise DataError(
                f"{where}: the model's chat template looks into what messages say, so that its own "
                f"control tokens cannot be told from text such as {min(found)[:40]!r}"
            )

        def stand_in(match: re.Match[str]) -> str:
            own = again[slice(*match.span())] == match[0]
            return self._form.stand_ins[match[0]] if own else match[0]

        return pattern(found).sub(stand_in, text)


class _Form:
    """A template with private characters for its control tokens."""

    def __init__(
        self, template: ChatTemplate, written: Sequence[str], avoid: frozenset[str]
    ) -> None:
        self._template = template
        self.stand_ins = dict(zip(written, _free(avoid, len(written)), strict=True))
        self.named = {stand_in: text for text, stand_in in self.stand_ins.items()}
        self._compiled, self._names = template.compiled(self.stand_ins)

    def render(self, messages: Sequence[Message], *, answer: bool, where: str) -> str:
        length, pieces = 0, []
        try:
            for piece in self._compiled.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer,
                **self._names,
            ):
                pieces.append(piece)
                length += len(piece)
                if length > LONGEST:
                    raise ValueError(f"its text has over {LONGEST} characters")
        except Exception as error:  # a template may raise whatever an expression can
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"{where}: the model's chat template refuses it: {reason}") from error
        text = "".join(pieces)
        check_text(text, f"{where}: what the model's chat template makes of it")
        return text

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Takes control tokens for the text that they are, and stand-ins for tokens."""
        copy = Tokenizer.from_str(self._template.tokenizer.to_str())
        copy.encode_special_tokens = True
        for text, stand_in in self.stand_ins.items():
            own = self._template.controls[text][1]
            likewise = AddedToken(
                stand_in,
                single_word=own.single_word,
                lstrip=own.lstrip,
                rstrip=own.rstrip,
                normalized=own.normalized,
                special=False,
            )
            copy.add_tokens([likewise])
        return copy

    @cached_property
    def control_of(self) -> dict[int, int]:
        """Number of a stand-in in the copy to that of its control token."""
        return {
            number: self._template.controls[self.named[stand_in]][0]
            for stand_in, number in self.tokenizer.get_vocab().items()
            if stand_in in self.named
        }

    @cached_property
    def forbidden(self) -> frozenset[int]:
        return frozenset(number for number, _ in self._template.controls.values())


def checked_messages(value: Any, where: str) -> list[dict[str, Any]]:
    """Messages as a row or a caller gives them.

    Raises:
        DataError: no list, empty, or one of them is no message: of another role than ``ROLES``, or
            with content that is no text.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = strict_json(value, f"{where}: messages")  # tables hold lists as JSON
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise DataError(f"{where}: messages must be a list, not {described(value)}")
    if not value:
        raise DataError(f"{where}: messages is an empty list")
    for number, message in enumerate(value):
        what = f"{where}: messages[{number}]"
        if not isinstance(message, Mapping):
            raise DataError(f"{what} must be an object, not {described(message)}")
        for field in ("role", "content"):
            if field not in message:
                raise DataError(f"{what} has no {field!r}")
            if not isinstance(message[field], str):
                raise DataError(f"{what}: {field!r} must be text, not {described(message[field])}")
            check_text(message[field], f"{what}: {field!r}")
        if message["role"] not in ROLES:
            raise DataError(
                f"{what}: role {message['role'][:40]!r} is unknown; roles: {', '.join(ROLES)}"
            )
    return [dict(message) for message in value]


def _free(avoid: frozenset[str], count: int) -> list[str]:
    """So many private characters that are not among ``avoid``."""
    free = (chr(place) for place in reversed(_PRIVATE) if chr(place) not in avoid)
    found = [each for each, _ in zip(free, range(count), strict=False)]
    if len(found) < count:
        raise DataError("messages hold all private characters of Unicode; leave some of them out")
    return found


def _joined(form: _Form, controls: Mapping[str, Any]) -> set[str]:
    """Control tokens that a template makes of pieces, as far as short conversations show it."""
    found: set[str] = set()
    for messages in _PROBES:
        for answer in (False, True):
            try:
                text = form.render(messages, answer=answer, where="the bundle")
            except DataError:  # such as of a template that knows no system message
                continue
            found |= named_in(controls, text)
    return found

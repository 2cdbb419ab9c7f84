"""The parts of an answer in the forms of the interface: whole, or as the events of a stream."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from .answering import Part, Said, Usage


class Form(ABC):
    """Of one answer.

    Args:
        usage: whether a stream ends with counts of tokens.
    """

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, model: str, usage: bool) -> None:
        self._usage = usage
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._written: dict[int, int] = {}

    def whole(self, parts: Iterable[Part | Usage]) -> dict[str, Any]:
        """All parts as one object."""
        choices: dict[int, list[Part]] = {}
        usage: dict[str, int] = {}
        for part in parts:
            if isinstance(part, Usage):
                usage = _counted(part)
            else:
                choices.setdefault(part.index, []).append(part)
        joined = [self._choice(_joined(each)) for each in choices.values()]
        return {**self._head, "object": self.kind, "choices": joined, "usage": usage}

    def events(self, part: Part | Usage) -> Iterator[dict[str, Any]]:
        """What a stream sends for a part."""
        head = {**self._head, "object": self.chunk_kind}
        if isinstance(part, Usage):
            if self._usage:
                yield {**head, "choices": [], "usage": _counted(part)}
            return
        yield {**head, "choices": [self._chunk(part)], **({"usage": None} if self._usage else {})}

    @abstractmethod
    def _choice(self, part: Part) -> dict[str, Any]: ...

    @abstractmethod
    def _chunk(self, part: Part) -> dict[str, Any]: ...


class Completion(Form):
    """A text."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def _choice(self, part: Part) -> dict[str, Any]:
        start = self._written.get(part.index, 0)
        self._written[part.index] = start + len(part.text)
        return {
            "index": part.index,
            "text": part.text,
            "logprobs": _columns(part.said, start) if part.said else None,
            "finish_reason": part.finish,
        }

    _chunk = _choice


class Chat(Form):
    """A message."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _choice(self, part: Part) -> dict[str, Any]:
        message = {"role": "assistant", "content": part.text, "refusal": None}
        return {"message": message, **self._rest(part)}

    def _chunk(self, part: Part) -> dict[str, Any]:
        delta: dict[str, str] = {}
        if part.index not in self._written:
            self._written[part.index] = 0
            delta["role"] = "assistant"
        if part.text or part.finish is None:
            delta["content"] = part.text
        return {"delta": delta, **self._rest(part)}

    def _rest(self, part: Part) -> dict[str, Any]:
        return {
            "index": part.index,
            "logprobs": {"content": list(map(_token, part.said))} if part.said else None,
            "finish_reason": part.finish,
        }


def _joined(parts: list[Part]) -> Part:
    said = [each for part in parts for each in part.said]
    return Part(parts[0].index, "".join(part.text for part in parts), said, parts[-1].finish)


def _counted(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def _columns(said: list[Said], start: int) -> dict[str, Any]:
    """Log-probabilities as completions tell them, with offsets in characters."""
    offsets = [start]
    for each in said[:-1]:
        offsets.append(offsets[-1] + len(each.text))
    return {
        "tokens": [each.text for each in said],
        "token_logprobs": [each.logprob for each in said],
        "top_logprobs": [None if each.logprob is None else _best(each.top) for each in said],
        "text_offset": offsets,
    }


def _best(top: list[tuple[str, float]]) -> dict[str, float]:
    """By text; of tokens with the same, such as parts of a character, the likeliest."""
    return dict(reversed(top))


def _token(said: Said) -> dict[str, Any]:
    """The same as chats tell them."""
    own = _bytes(said.text, said.logprob)
    return {**own, "top_logprobs": [_bytes(text, logprob) for text, logprob in said.top]}


def _bytes(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

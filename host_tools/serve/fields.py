"""What a request asks for: its fields, checked. One that cannot be honoured is refused by name."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedtune.runtime.errors import DataError
from seedtune.runtime.writing import Manner
from seedtune.runtime.writing.likelihood import MOST

from .refusal import Refusal

Prompt = str | list[Any]
"""A text, its tokens, or messages."""
SHORT = 16
"""Tokens of a completion, where its length is left open; that of an answer in a chat ends where it
must. So has it the interface."""
_LONGEST = 1 << 31
"""More tokens than any text has."""


@dataclass(frozen=True)
class Asked:
    """A request for text."""

    model: str
    prompts: list[Prompt]
    manner: Manner | None
    """None: nothing is to be written, ``echo`` alone is asked for."""
    seeded: bool
    """Whether the request chose the seed, and so wants the same text each time."""
    stream: bool
    usage: bool
    """Whether a stream ends with counts of tokens."""
    logprobs: int | None
    """How many of the likeliest tokens of each place are told; None: no log-probabilities."""
    echo: bool = False


@dataclass(frozen=True)
class AskedRows:
    """A request for answers of a task."""

    model: str
    rows: list[Any]


def chat(body: object) -> Asked:
    """Of ``/v1/chat/completions``.

    Raises:
        Refusal: a field is missing, unknown, of another type, or cannot be honoured.
    """
    found = _checked(body, {**_COMMON, **_CHAT}, needed=("model", "messages"))
    longest = found["max_completion_tokens"] or found["max_tokens"] or _LONGEST
    told = found["top_logprobs"]
    if told is not None and not found["logprobs"]:
        raise _wrong("top_logprobs", "asks for what logprobs: true alone brings")
    logprobs = (told or 0) if found["logprobs"] else None
    return _asked(found, [found["messages"]], longest, logprobs)


def completion(body: object) -> Asked:
    """Of ``/v1/completions``; raises as ``chat``."""
    found = _checked(body, {**_COMMON, **_COMPLETION}, needed=("model", "prompt"))
    longest = SHORT if found["max_tokens"] is None else found["max_tokens"]
    echo = bool(found["echo"])
    if not longest and not echo:
        raise _wrong("max_tokens", "is 0, which asks for nothing without echo: true")
    return _asked(found, found["prompt"], longest, found["logprobs"], echo)


def prediction(body: object) -> AskedRows:
    """Of ``/v1/predict``; raises as ``chat``."""
    found = _checked(body, {"model": _text, "rows": _rows}, needed=("model", "rows"))
    return AskedRows(found["model"], found["rows"])


def _asked(
    found: Mapping[str, Any],
    prompts: list[Prompt],
    longest: int,
    logprobs: int | None,
    echo: bool = False,
) -> Asked:
    seed = found["seed"]
    stop = found["stop"] or []
    try:
        manner = Manner(
            max_tokens=max(longest, 1),
            temperature=1.0 if found["temperature"] is None else found["temperature"],
            top_p=1.0 if found["top_p"] is None else found["top_p"],
            seed=(secrets.randbits(64) if seed is None else seed) % 2**64,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
    except DataError as error:  # begins with the field's name
        raise Refusal(400, str(error), param=str(error).split()[0].partition("[")[0]) from None
    options = found["stream_options"] or {}
    return Asked(
        found["model"],
        prompts,
        manner if longest else None,
        seed is not None,
        bool(found["stream"]),
        bool(options.get("include_usage")),
        logprobs,
        echo,
    )


def _checked(
    body: object, fields: Mapping[str, Callable[[Any], bool]], needed: Sequence[str]
) -> dict[str, Any]:
    """Every field, None where it is left out or null, which mean the same."""
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be a JSON object")
    for name in needed:
        if body.get(name) is None:
            raise _wrong(name, "is missing")
    for name, value in body.items():
        if value is None:
            continue
        if name in fields:
            if not fields[name](value):
                raise _wrong(name, f"cannot be {_shown(value)}: {_said(fields[name])}")
        elif name not in _NEUTRAL:
            raise _wrong(name, f"is unknown here; known: {', '.join(fields)}", "unknown_parameter")
        elif value != _NEUTRAL[name] or isinstance(value, bool) != isinstance(_NEUTRAL[name], bool):
            raise _wrong(
                name,
                f"cannot be honoured with {_shown(value)}; leave it out",
                "unsupported_parameter",
            )
    found: dict[str, Any] = {name: body.get(name) for name in fields}
    found["prompt"] = _prompts(found["prompt"]) if "prompt" in fields else None
    return found


def _wrong(name: str, what: str, code: str | None = None) -> Refusal:
    return Refusal(400, f"{name[:60]} {what}", param=name[:60], code=code)


def _shown(value: object) -> str:
    return f"{value!r:.60}"


def _said(check: Callable[[Any], bool]) -> str:
    assert check.__doc__ is not None
    return check.__doc__


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or several, each a text or tokens."""
    one = isinstance(value, str) or _tokens(value)
    return [value] if one else list(value)


def _text(value: Any) -> bool:
    """it must be text"""
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    """it must be true or false"""
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    """it must be a number"""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    """it must be a whole number of 64 bits"""
    return type(value) is int and -(2**63) <= value < 2**64


def _count(value: Any) -> bool:
    """it must be a whole number above 0"""
    return type(value) is int and 0 < value <= _LONGEST


def _count_or_none(value: Any) -> bool:
    """it must be a whole number, 0 or above"""
    return type(value) is int and 0 <= value <= _LONGEST


def _likeliest(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


_likeliest.__doc__ = f"it must be a whole number from 0 to {MOST}"


def _stop(value: Any) -> bool:
    """it must be a text or a list of texts"""
    return _text(value) or (isinstance(value, list) and all(map(_text, value)))


def _tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _prompt(value: Any) -> bool:
    """it must be a text, tokens, or a list of texts or of lists of tokens"""
    if _text(value) or _tokens(value):
        return True
    return isinstance(value, list) and bool(value) and all(_text(v) or _tokens(v) for v in value)


def _rows(value: Any) -> bool:
    """it must be a list of objects, each the fields of a row"""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _messages(value: Any) -> bool:
    """it must be a list of messages, each with role and content"""
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _stream_options(value: Any) -> bool:
    """it may hold include_usage, true or false, alone"""
    return (
        isinstance(value, dict)
        and set(value) <= {"include_usage"}
        and all(_flag(each) for each in value.values())
    )


_COMMON: dict[str, Callable[[Any], bool]] = {
    "model": _text,
    "max_tokens": _count,
    "temperature": _number,
    "top_p": _number,
    "seed": _whole,
    "stop": _stop,
    "stream": _flag,
    "stream_options": _stream_options,
    "user": _text,  # says who asks, which changes no answer
}
_CHAT: dict[str, Callable[[Any], bool]] = {
    "messages": _messages,
    "max_completion_tokens": _count,
    "logprobs": _flag,
    "top_logprobs": _likeliest,
}
_COMPLETION: dict[str, Callable[[Any], bool]] = {
    "prompt": _prompt,
    "max_tokens": _count_or_none,
    "logprobs": _likeliest,
    "echo": _flag,
}
_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "suffix": "",
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "store": False,
}
"""Fields of the interface that only this value asks nothing of."""

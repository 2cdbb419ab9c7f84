"""From a request to the parts of its answer, in the thread that answers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seedtune.runtime.errors import DataError, SeedtuneError
from seedtune.runtime.writing import TokenLogprob

from .fields import Asked, AskedRows, Prompt
from .models import Models
from .refusal import Refusal
from .worker import Left

if TYPE_CHECKING:
    from seedtune.runtime.model import Model
    from seedtune.runtime.writing import Writer

_FINISH = {"end": "stop", "stop": "stop"}
"""How the interface calls why an answer ended; all else is ``length``: it was cut."""


@dataclass(frozen=True)
class Said:
    """A token of an answer."""

    text: str
    logprob: float | None
    """None of a text's first token, which follows nothing."""
    top: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """Of one choice."""

    index: int
    text: str
    said: list[Said] = field(default_factory=list)
    """Tokens since the part before, where log-probabilities were asked for."""
    finish: str | None = None


@dataclass(frozen=True)
class Usage:
    """The last part of an answer: tokens read and written."""

    prompt: int
    completion: int


def answer(models: Models, asked: Asked, most: int | None, left: Left) -> Generator[Part | Usage]:
    """Each prompt's choice, one after another.

    Args:
        most: tokens of a prompt, at most; None: what fits.

    Raises:
        Refusal, SeedtuneError: it cannot be answered.
    """
    model = models[asked.model]
    read = written = 0
    try:
        for index, prompt in enumerate(asked.prompts):
            _need_time(left)
            tokens = _tokens(model, prompt)
            if most is not None and len(tokens) > most:
                raise DataError(f"the prompt has {len(tokens)} tokens, at most {most} are taken")
            read += len(tokens)
            # What is looked at token by token is the same each time anyway.
            fresh = asked.seeded and not (asked.echo and asked.logprobs)
            writer = models.writer(asked.model, fresh)
            if asked.echo:
                said = _given(model, writer, tokens, asked.logprobs, left)
                text = prompt if isinstance(prompt, str) else _text(model, tokens)
                yield Part(index, text, said)
            if asked.manner is None:
                yield Part(index, "", finish="length")
                continue
            writing = writer.write(tokens, asked.manner, logprobs=asked.logprobs, left=left)
            told = 0
            for piece in writing:
                yield Part(index, piece, _said(model, writing.logprobs[told:]))
                told = len(writing.logprobs)
            written += len(writing.tokens)
            finish = _FINISH.get(writing.ended or "", "length")
            yield Part(index, "", _said(model, writing.logprobs[told:]), finish)
    except SeedtuneError:
        models.forget_text()  # it may have ended within a pass
        raise
    yield Usage(read, written)


def predict(models: Models, asked: AskedRows, left: Left) -> Generator[dict[str, Any]]:
    """Answer and probabilities of all rows, as one part.

    Raises:
        Refusal, SeedtuneError: they cannot be answered.
    """
    model = models[asked.model]
    if not model.task.labels:
        raise Refusal(
            400,
            f"the task of {asked.model} writes and has nothing to choose from; ask "
            "/v1/completions or /v1/chat/completions",
            param="model",
        )
    answers = model.predict(asked.rows, lambda done, total: _need_time(left))
    predictions = [{"answer": each.answer, "probabilities": each.scores} for each in answers]
    yield {"object": "list", "model": asked.model, "data": predictions}


def _need_time(left: Left) -> None:
    if left():
        raise Refusal(503, "the time for one request is over; ask for less at once")


def _tokens(model: Model, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str) or not prompt or not isinstance(prompt[0], int):
        return model.prompt_tokens(prompt)
    vocabulary = model.bundle.vocab_size
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise DataError(f"prompt holds a token outside of 0 to {vocabulary - 1}")
    return prompt


def _given(
    model: Model, writer: Writer, tokens: Sequence[int], top: int | None, left: Left
) -> list[Said]:
    """Tokens of a prompt, scored as an evaluation scores them; the writer only nominates."""
    if top is None:
        return []
    nominated: list[tuple[int, ...]] = []
    if top:
        for each in writer.likeliest(tokens, top):
            _need_time(left)
            nominated.append(each)
    own = Said(_text(model, tokens[:1]), None)
    return [own, *_said(model, model.logprobs(tokens, nominated[:-1]))]


def _said(model: Model, found: Iterable[TokenLogprob]) -> list[Said]:
    return [
        Said(
            _text(model, [each.token]),
            each.logprob,
            [(_text(model, [token]), logprob) for token, logprob in each.top],
        )
        for each in found
    ]


def _text(model: Model, tokens: Sequence[int]) -> str:
    return str(model.bundle.tokenizer().decode(list(tokens), skip_special_tokens=False))

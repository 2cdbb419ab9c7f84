"""From a request to the parts of its answer, in the thread that answers, and the models there."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedtune.runtime.errors import DataError, JournalError, SeedtuneError
from seedtune.runtime.writing import TokenLogprob

from .fields import Asked, AskedRows, Prompt
from .refusal import Refusal
from .worker import Left

if TYPE_CHECKING:
    from seedtune.runtime.model import Model
    from seedtune.runtime.writing import Writer

_FINISH = {"end": "stop", "stop": "stop"}
"""How the interface calls why an answer ended; all else is ``length``: it was cut."""


class Models:
    """The bundle as exported and each of its runs, a model of its own under a name of its own, all
    over one open program. The thread that answers alone uses them."""

    def __init__(self, model: Model, runs: Sequence[Path]) -> None:
        """
        Args:
            model: as exported.
            runs: folders, whose best values are loaded, and their task.

        Raises:
            SeedtuneError: two runs have one name, or one cannot be loaded.
        """
        name = str(model.bundle.manifest["model"]["name"])
        self._models = {name: model}
        self._latest: tuple[str, Writer] | None = None
        for run in runs:
            if not run.is_dir():
                raise JournalError(f"{run}: no such run folder")
            own = f"{name}:{run.resolve().name}"
            if own in self._models:
                raise SeedtuneError(f"{run}: another run is called {own}, too; rename the folder")
            self._models[own] = model.twin()
            self._models[own].load(run)

    @property
    def names(self) -> list[str]:
        """What can be asked for, the exported model first."""
        return list(self._models)

    def __getitem__(self, name: str) -> Model:
        """
        Raises:
            Refusal: no such model.
        """
        if name not in self._models:
            raise Refusal(
                404,
                f"there is no model {name[:60]!r}; there are: {', '.join(self._models)}",
                param="model",
                code="model_not_found",
            )
        return self._models[name]

    def writer(self, name: str, fresh: bool) -> Writer:
        """Writes with a model's values.

        What a prompt has in common with the text before it is not read again, so a conversation
        costs its new messages. There is one text for all models: its memory is the largest.

        Args:
            fresh: begin an empty text: the same prompt then gives the same answer, to the bit.
        """
        if fresh or self._latest is None or self._latest[0] != name:
            self._latest = None  # before the next one: two would take twice the memory
            self._latest = name, self[name].writer()
        return self._latest[1]

    def forget_text(self) -> None:
        """Begin an empty text next time, as after an error in the middle of one."""
        self._latest = None


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

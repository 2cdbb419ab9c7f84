"""The loop that writes: read the prompt, choose a token, show it, read it, and so on; what is shown
is whole characters, nothing of a stop text."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..engines import Text
from ..errors import DataError
from ..scoring.part import Part
from .choose import PENALTY, Manner, choose, without_repeats
from .likelihood import MOST, TokenLogprob, likeliest, of_written

_CONTEXT = 6
"""Tokens before a piece that are decoded with it: to some decoders a text's first is special."""
_HALF = "\ufffd"


class Pieces:
    """Decodes token by token.

    A token may end inside a character, and a decoder may join it with the one before. So a few
    tokens are decoded with and without the new ones, and what is more is shown once it is whole
    (as Hugging Face's text-generation-inference does in ``decode_token``).
    """

    def __init__(
        self, tokenizer: Tokenizer, context: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        """``context``: tokens before the text; they are not shown."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens = list(context[-_CONTEXT:])
        self._first, self._shown = 0, len(self._tokens)
        self._held = ""
        self.stopped = False
        """Whether a stop text was met."""

    def add(self, token: int) -> str:
        """What can be shown now; empty if that is nothing yet."""
        self._tokens.append(token)
        new = self._undecoded()
        if new.endswith(_HALF):
            return ""
        if new:
            self._first, self._shown = self._shown, len(self._tokens)
        return self._before_stop(new)

    def rest(self) -> str:
        """What is left at the end, but for half a character."""
        if self.stopped:
            return ""
        shown, self._held = self._held + self._undecoded().rstrip(_HALF), ""
        self._shown = len(self._tokens)
        return shown

    def _undecoded(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._first : self._shown])
        return self._tokenizer.decode(self._tokens[self._first :])[len(before) :]

    def _before_stop(self, new: str) -> str:
        text = self._held + new
        places = [place for each in self._stop if (place := text.find(each)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that may be the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


End = Literal["end", "stop", "max_tokens", "bound", "left"]
READ = 256
"""Tokens of a prompt that are read between two looks at whether anybody still waits."""


class Writing(Iterator[str]):
    """An answer as it is written: iterate for its pieces, each whole characters.

    It may be left at any time, and then cannot be gone on with once another is begun.
    """

    def __init__(self, pieces: Iterator[str] = iter(())) -> None:  # noqa: B008  # it is empty
        self._pieces = pieces
        self.tokens: list[int] = []
        """Written so far, without the one that ended it."""
        self.logprobs: list[TokenLogprob] = []
        """Of each of them, where they were asked for: the model's own, whatever the manner."""
        self.ended: End | None = None
        """Why it ended: the model's own end, a stop text, the tokens that were allowed (by
        ``max_tokens``, or by what the bundle can write), or ``left`` said so; None while it goes
        on."""

    def __next__(self) -> str:
        return next(self._pieces)


def check_prompt(prompt: Sequence[int], bound: int) -> None:
    """Refuse a prompt that is empty or leaves no room in ``bound`` tokens for an answer.

    Raises:
        DataError: it is one of these.
    """
    if not prompt:
        raise DataError("the prompt is empty: give the text that is to be gone on from")
    if len(prompt) >= bound:
        raise DataError(
            f"the prompt has {len(prompt)} tokens, a text here at most {bound} with its answer: "
            "shorten the prompt, export with a larger --context or raise the memory limit"
        )


class Writer:
    """Writes answers under one row of values.

    What a prompt has in common with the text before it is not read again: a conversation costs its
    new messages alone. Sums then run in another order than over the whole, so that an answer may
    differ from a fresh writer's in rare tokens.
    """

    def __init__(
        self,
        text: Text,
        tokenizer: Tokenizer,
        ends: Collection[int],
        bound: int | None = None,
        part: Part | None = None,
    ) -> None:
        """An empty text.

        Args:
            ends: tokens with which the model itself ends a text.
            bound: of a prompt with its answer, if fewer tokens than the program's.
            part: of the values, which may have a share in what comes next.
        """
        self._part = part
        self._text, self._tokenizer, self._ends = text, tokenizer, frozenset(ends)
        self.bound = text.bound if bound is None else min(bound, text.bound)
        """Tokens of a prompt with its answer, at most."""
        self._read: list[int] = []
        self._seen: list[tuple[int, ...]] = []
        """Behind each of the first tokens read, one by one: the likeliest to come next."""
        self._latest: Writing | None = None

    def write(
        self,
        prompt: Sequence[int],
        manner: Manner,
        *,
        logprobs: int | None = None,
        left: Callable[[], bool] = lambda: False,
    ) -> Writing:
        """Go on from ``prompt``. An answer that was begun before ends.

        Args:
            logprobs: note log-probabilities of the tokens written, and of so many of the likeliest
                of each place; None notes none.
            left: asked before each token, also where nothing can be shown yet: whether to end.

        Raises:
            DataError: the prompt is empty, or leaves no room for an answer.
            EngineError: (iterating) the program fails, or its logits are not finite.
        """
        check_prompt(prompt, self.bound)
        writing = Writing()
        writing._pieces = self._pieces(writing, list(prompt), manner, logprobs, left)
        self._latest = writing
        return writing

    def likeliest(self, prompt: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
        """The ``count`` likeliest tokens behind each token of ``prompt``, which is read one by one:
        as slow as it would be to write. What a text has in common with the one before it that was
        read so is not read again, and gives the same to the bit.

        Raises:
            DataError: as ``write``; ``count`` is above ``MOST``.
        """
        check_prompt(prompt, self.bound)
        if not 0 <= count <= MOST:
            raise DataError(f"{count} likeliest tokens are asked for, must lie in 0 to {MOST}")
        self._latest = None
        self._go_back(min(self._common(prompt), len(self._seen)))
        for place, token in enumerate(prompt):
            if place == len(self._seen):
                logits = self._mixed(self._text.read([token]), prompt[: place + 1])
                self._read.append(token)
                self._seen.append(likeliest(logits, MOST))
            yield self._seen[place][:count]

    def _common(self, prompt: Sequence[int]) -> int:
        """Tokens that ``prompt`` begins with and that are read."""
        known = zip(self._read, prompt, strict=False)
        common = next((at for at, (a, b) in enumerate(known) if a != b), None)
        return min(len(self._read), len(prompt)) if common is None else common

    def _go_back(self, length: int) -> None:
        self._text.rewind(length)
        del self._read[length:], self._seen[length:]

    def _mixed(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        return logits if self._part is None else self._part.mixed_next(logits, tokens)

    def _pieces(
        self,
        writing: Writing,
        prompt: list[int],
        manner: Manner,
        top: int | None,
        left: Callable[[], bool],
    ) -> Iterator[str]:
        self._go_back(self._common(prompt[:-1]))  # the last is read for its logits
        while len(self._read) < len(prompt):
            if left():
                writing.ended = "left"
                return
            part = prompt[len(self._read) :][:READ]
            logits = self._text.read(part)
            self._read += part
        pieces = Pieces(self._tokenizer, prompt, manner.stop)
        penalty = manner.repetition_penalty
        if penalty is None:
            penalty = PENALTY if self._part is not None and self._part.writes else 0.0
        while writing.ended is None:
            own = self._mixed(logits, [*prompt, *writing.tokens])
            logits = without_repeats(own, writing.tokens, penalty)
            token = choose(logits, manner, len(writing.tokens))
            if token in self._ends:
                writing.ended = "end"
                break
            writing.tokens.append(token)
            if top is not None:
                writing.logprobs.append(of_written(own, token, top))
            piece = pieces.add(token)
            if pieces.stopped:
                writing.ended = "stop"
            elif len(writing.tokens) == manner.max_tokens:
                writing.ended = "max_tokens"
            elif len(prompt) + len(writing.tokens) >= self.bound:
                writing.ended = "bound"
            if piece:
                yield piece
            if self._latest is not writing:
                raise DataError("this answer was left for another; begin it again")
            if writing.ended is None and left():
                writing.ended = "left"
            if writing.ended is None:
                logits = self._text.read([token])
                self._read.append(token)
        rest = pieces.rest()
        if rest:
            yield rest

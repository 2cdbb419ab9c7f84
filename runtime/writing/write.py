"""The loop that writes: read the prompt, choose a token, show it, read it, and so on."""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from tokenizers import Tokenizer

from ..engines import Text
from ..errors import DataError
from ..scoring.part import Part
from .choose import PENALTY, choose, without_repeats
from .manner import Manner
from .pieces import Pieces

End = Literal["end", "stop", "max_tokens", "bound"]


class Writing(Iterator[str]):
    """An answer as it is written: iterate for its pieces, each whole characters.

    It may be left at any time, and then cannot be gone on with once another is begun.
    """

    def __init__(self, pieces: Iterator[str] = iter(())) -> None:  # noqa: B008  # it is empty
        self._pieces = pieces
        self.tokens: list[int] = []
        """Written so far, without the one that ended it."""
        self.ended: End | None = None
        """Why it ended: the model's own end, a stop text, or the tokens that were allowed (by
        ``max_tokens``, or by what the bundle can write); None while it goes on."""

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
        self._latest: Writing | None = None

    def write(self, prompt: Sequence[int], manner: Manner) -> Writing:
        """Go on from ``prompt``. An answer that was begun before ends.

        Raises:
            DataError: the prompt is empty, or leaves no room for an answer.
            EngineError: (iterating) the program fails, or its logits are not finite.
        """
        check_prompt(prompt, self.bound)
        writing = Writing()
        writing._pieces = self._pieces(writing, list(prompt), manner)
        self._latest = writing
        return writing

    def _pieces(self, writing: Writing, prompt: list[int], manner: Manner) -> Iterator[str]:
        known = zip(self._read, prompt[:-1], strict=False)  # the last is read for its logits
        common = next((at for at, (a, b) in enumerate(known) if a != b), None)
        if common is None:
            common = min(len(self._read), len(prompt) - 1)
        self._text.rewind(common)
        del self._read[common:]
        logits = self._text.read(prompt[common:])
        self._read = list(prompt)
        pieces = Pieces(self._tokenizer, prompt, manner.stop)
        penalty = manner.repetition_penalty
        if penalty is None:
            penalty = PENALTY if self._part is not None and self._part.writes else 0.0
        while writing.ended is None:
            if self._part is not None:
                logits = self._part.mixed_next(logits, [*prompt, *writing.tokens])
            logits = without_repeats(logits, writing.tokens, penalty)
            token = choose(logits, manner, len(writing.tokens))
            if token in self._ends:
                writing.ended = "end"
                break
            writing.tokens.append(token)
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
            if writing.ended is None:
                logits = self._text.read([token])
                self._read.append(token)
        rest = pieces.rest()
        if rest:
            yield rest

"""What every row of a task has in front, the constant start of its template: a program that can
reads it once for all rows (see ``engines.read_prefix``), and rows hold the tokens behind it.

Texts are tokenised behind it here, and which tokens of a text behind a prompt are scored.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ..errors import DataError
from .tokenising import tokenise

LEAST = 16
"""Tokens below which a prefix is not worth its own products."""
_KEPT = 2
"""Last tokens of it that stay in the rows: one that may merge with what follows, and one whose
hidden state says what comes next."""
_FOLLOWING = ("a", " a", "A", " ", "\n", "1", ".", "'", "é", "字", "the 1st\n(it's)")


class Front:
    """The tokens that every row begins with, as far as the tokenizer leaves them alone."""

    def __init__(self, text: str, tokenizer: Tokenizer, most: int) -> None:
        """
        Args:
            text: what every row's text begins with.
            most: tokens of a prefix that the program takes; what goes beyond stays in the rows.
        """
        self._tokenizer = tokenizer
        whole = tokenise(tokenizer, text)
        count = min(most, len(whole.ids) - _KEPT)
        longer = [text + more for more in _FOLLOWING] if count >= LEAST else []
        for other in longer:
            # What follows may change how the end is cut: a prefix stops before that.
            ids = tokenise(tokenizer, other).ids
            while whole.ids[:count] != ids[:count]:
                count -= 1
        if count < LEAST:
            count = 0
        self._ids: list[int] = whole.ids[:count]
        self._characters: int = whole.offsets[count - 1][1] if count else 0
        self._alone = count > 0 and all(
            self._rest(other).ids == tokenise(tokenizer, other).ids[count:] for other in longer
        )
        """Whether a tokenizer that sees only what stands behind it cuts that the same: most do,
        and need not read it again with every row."""
        self.tokens: NDArray[np.int64] = np.array(self._ids, np.int64)

    def behind(self, text: str) -> tuple[list[int], list[int]]:
        """A row's tokens without it, and where in ``text`` each of them ends.

        A row whose own start would merge with it is cut between the two.
        """
        if not self._alone:
            whole, count = tokenise(self._tokenizer, text), len(self._ids)
            if whole.ids[:count] == self._ids:
                return whole.ids[count:], [end for _, end in whole.offsets[count:]]
        rest = self._rest(text)
        return rest.ids, [end + self._characters for _, end in rest.offsets]

    def _rest(self, text: str) -> Encoding:
        return tokenise(self._tokenizer, text[self._characters :], special=False)


@dataclass(frozen=True)
class Continuation:
    """Prompt and continuation as the tokenizer sees them joined."""

    tokens: list[int]
    start: int
    """First token of the continuation, at least 1: a hidden state must predict it."""

    def scored(self, row: int) -> tuple[list[tuple[int, int]], list[list[int]]]:
        """Places ``(row, column)`` of the hidden states and the one candidate token at each."""
        columns = range(self.start - 1, len(self.tokens) - 1)
        return [(row, column) for column in columns], [[self.tokens[c + 1]] for c in columns]


def continuation(prompt: str, text: str, front: Front, where: str) -> Continuation:
    """Tokenise ``prompt + text`` at once, as the model would meet it, behind ``front``.

    A token that spans the border counts as continuation. After an empty prompt the first token
    is given, not scored.

    Raises:
        DataError: nothing is left to score.
    """
    tokens, ends = front.behind(prompt + text)
    # Special tokens such as a leading BOS end at 0.
    start = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ends))
    start = max(start, 1)
    if start >= len(tokens):
        raise DataError(f"{where}: the text to score after the prompt is empty")
    return Continuation(tokens, start)

"""What every row of a task has in front, the constant start of its template: a program that can
reads it once for all rows (see ``engines.read_prefix``), and rows hold the tokens behind it."""

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .tokenising import tokenise

LEAST = 16
"""Tokens below which a prefix is not worth its own products."""
_KEPT = 2
"""Last tokens of it that stay in the rows: one that may merge with what follows, and one whose
hidden state says what comes next."""
_FOLLOWING = ("a", " a", "A", " ", "\n", "1", ".", "'", "é", "字")


class Front:
    """The tokens that every row begins with, as far as the tokenizer leaves them alone."""

    def __init__(self, text: str, tokenizer: Tokenizer, most: int) -> None:
        """
        Args:
            text: what every row's text begins with.
            most: tokens of a prefix that the program takes; what goes beyond stays in the rows.
        """
        whole = tokenise(tokenizer, text)
        count = min(most, len(whole.ids) - _KEPT)
        if count >= LEAST:
            # The next letters may change how the end is cut: a prefix stops before that.
            for letter in _FOLLOWING:
                other = tokenise(tokenizer, text + letter).ids
                while whole.ids[:count] != other[:count]:
                    count -= 1
        if count < LEAST:
            count = 0
        self.tokens: NDArray[np.int64] = np.array(whole.ids[:count], np.int64)
        self._ids = whole.ids[:count]
        self._characters = whole.offsets[count - 1][1] if count else 0

    def leads(self, ids: list[int]) -> bool:
        """Whether a row of these tokens begins with it."""
        return ids[: len(self._ids)] == self._ids

    def rest(self, text: str) -> str:
        """A row's text without it, to be tokenised alone where it does not lead the row's."""
        return text[self._characters :]

"""Texts scored as the continuation of a prompt: which tokens of the joined text belong to it."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from ..errors import DataError
from .tokenising import tokenise


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


def continuation(prompt: str, text: str, tokenizer: Tokenizer, where: str) -> Continuation:
    """Tokenise ``prompt + text`` at once, as the model would meet it.

    A token that spans the border counts as continuation. After an empty prompt the first token
    is given, not scored.

    Raises:
        DataError: nothing is left to score.
    """
    encoding = tokenise(tokenizer, prompt + text)
    # Offsets count characters of the joined text; special tokens such as a leading BOS have (0, 0).
    ends = [end for _, end in encoding.offsets]
    start = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ends))
    start = max(start, 1)
    if start >= len(encoding.ids):
        raise DataError(f"{where}: the text to score after the prompt is empty")
    return Continuation(encoding.ids, start)

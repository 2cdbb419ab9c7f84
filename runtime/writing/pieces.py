"""From tokens to pieces of text that can be shown: whole characters, nothing of a stop text."""

from collections.abc import Sequence

from tokenizers import Tokenizer

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

"""The tokenizer at work: on a text, on a prompt and what continues it, behind what every row has in
front, and watched on texts from outside, where it may fail in its own way or not come back.

A tokenizer is a file of the bundle, with regular expressions in it. Some texts make it panic (the
library's word for a failed assertion in Rust, which no ``except Exception`` sees), others keep it
busy for hours. Both become an error that names the row.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ..errors import DataError

SECONDS = 60.0
"""Processor time of this process after which a text is given up. SmolLM2's tokenizer takes 20 ms
for 10 000 words."""
_PARALLEL = "TOKENIZERS_PARALLELISM"
LEAST = 16
"""Tokens below which a prefix is not worth its own products."""
_KEPT = 2
"""Last tokens of it that stay in the rows: one that may merge with what follows, and one whose
hidden state says what comes next."""
_FOLLOWING = ("a", " a", "A", " ", "\n", "1", ".", "'", "é", "字", "the 1st\n(it's)")

Result = TypeVar("Result")


def tokenise(tokenizer: Tokenizer, text: str, *, special: bool = True) -> Encoding:
    """``tokenizer.encode``, during which other threads can run: the library's own keeps them out.

    Args:
        special: whether to add special tokens, such as a leading BOS.
    """
    found: Encoding = tokenizer.encode_batch([text], add_special_tokens=special)[0]
    return found


def shorten(text: str, tokens: int, tokenizer: Tokenizer) -> str:
    """Drop at least one character and about ``tokens`` tokens from the end of ``text``.

    The count is about right only, since the text is tokenised alone here; the caller counts
    again and repeats.
    """
    offsets = tokenise(tokenizer, text, special=False).offsets
    if tokens >= len(offsets):
        return ""
    end = min(offsets[-tokens][0], len(text) - 1)
    return text[:end].rstrip()


class Front:
    """The tokens that every row of a task begins with, the constant start of its template.

    They are those that the tokenizer leaves alone whatever follows. A program that can reads them
    once for all rows (see ``engines.read_prefix``); rows hold the tokens behind them.
    """

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


class Watch:
    """Where ``watched`` work is."""

    def __init__(self, where: str) -> None:
        self.left = False
        self.at(where)

    def at(self, where: str) -> None:
        """To be called before each piece of the work; ``where`` begins its errors."""
        if self.left:
            raise SystemExit  # ends the thread, without a word
        self.where, self.since = where, time.process_time()


def watched(work: Callable[[Watch], Result], where: str) -> Result:
    """What ``work`` returns. It runs in a thread, which is left behind if a piece does not end: a
    template's loop is broken off there, a tokenizer's goes on.

    Raises:
        DataError: the tokenizer fails or does not come back; names the piece. Any other error of
            the work is raised as it is.
    """
    watch, found, errors = Watch(where), [], []

    def run() -> None:
        try:
            found.append(work(watch))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="seedtune-tokenising", daemon=True)
    with _serial():
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                if time.process_time() - watch.since > SECONDS and thread.is_alive():
                    ident = ctypes.c_ulong(thread.ident or 0)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
                    raise DataError(
                        f"{watch.where}: the bundle's tokenizer or chat template has not come to "
                        f"an end after {SECONDS:.0f} s of computing; shorten the text or leave it "
                        "out"
                    )
        finally:
            watch.left = True
    if errors:
        raise _explained(errors[0], watch.where)
    result: Result = found[0]
    return result


def _explained(error: BaseException, where: str) -> BaseException:
    # The library's errors are of no type of their own; its panics are of one that has no module.
    if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
        return error
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    shown = reason if reason.isprintable() else repr(reason)
    explained = DataError(f"{where}: the bundle's tokenizer fails on this text ({shown})")
    explained.__cause__ = error
    return explained


@contextmanager
def _serial() -> Iterator[None]:
    """Keep the library from threads of its own, which would outlive the work and not a fork."""
    own = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        if own is None:
            os.environ.pop(_PARALLEL, None)
        else:
            os.environ[_PARALLEL] = own

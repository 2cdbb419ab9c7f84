"""What a run's memory of words holds, told by text, and which of it is to be forgotten."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import JournalError
from ..scoring.word_memory import WHEN, texts_in, tokens_of
from .metrics import read_metrics
from .state import RunState

Decode = Callable[[list[int]], str]
"""From tokens to text."""


class Remembered(NamedTuple):
    """A text that a run keeps words of."""

    text: str
    """With up to three tokens that stood in front. Long texts lack their end, and the oldest may
    lack its beginning."""
    words: int
    """Tokens that were said."""
    times: int
    """How often it stands in the memory: once a pass over the rows."""
    step: int
    """In which it was learned last; 0 if that is not known."""
    learned: float | None
    """When, by the clock (seconds since 1970), at the latest; None if that is not known."""


class _Kept(NamedTuple):
    """A text at one place of the memory."""

    place: slice
    tokens: list[int]
    words: int
    text: str
    step: int
    learned: float | None


def remembered(done: RunState, decode: Decode) -> list[Remembered]:
    """Each text once, the newest first."""
    found: dict[tuple[int, ...], Remembered] = {}
    for each in reversed(_kept(done, decode)):
        key = tuple(each.tokens)
        one = found.get(key, Remembered(each.text, each.words, 0, each.step, each.learned))
        found[key] = one._replace(times=one.times + 1)
    return list(found.values())


def chosen(
    done: RunState, decode: Decode, texts: Sequence[str], since: float | None
) -> list[slice]:
    """Places of texts in the memory that hold one of ``texts``, whatever the case of letters and
    the length of spaces, or stand in one, and of the pieces of these that were cut; and where one
    was learned at ``since`` or later, or it is not known when.

    Raises:
        JournalError: one of ``texts`` is in none, or nothing was learned since then.
    """
    kept, path = _kept(done, decode), done.path
    wanted = [_plain(text) for text in texts]
    for text, plain in zip(texts, wanted, strict=True):
        if not plain or not any(_holds(each, plain) for each in kept):
            raise JournalError(
                f"{path}: no text that the run keeps words of holds {text!r:.80}; "
                "'seedtune journal words' lists them"
            )
    held = [each for each in kept if any(_holds(each, plain) for plain in wanted)]
    whole = {_row(each.tokens) for each in held}

    def goes(each: _Kept) -> bool:
        late = since is not None and (each.learned is None or each.learned >= since)
        return late or any(_row(each.tokens) in one for one in whole)

    found = [each.place for each in kept if goes(each)]
    if not found:
        raise JournalError(f"{path}: keeps no words of texts that it learned since then")
    return found


def _kept(done: RunState, decode: Decode) -> list[_Kept]:
    """The oldest first."""
    words, when = done.values.words, when_of(done)
    lines = [line for line in read_metrics(done.path.parent) if line.get("time")]
    steps, times = [line["step"] for line in lines], [line["time"] for line in lines]
    found = []
    for place in texts_in(words):
        step, tokens = int(when[place].max()), tokens_of(words[place]).tolist()
        at = bisect_left(steps, step) if step else len(steps)
        learned = times[at] if at < len(times) else None
        said = int((words[place] > 0).sum())
        found.append(_Kept(place, tokens, said, decode(tokens), step, learned))
    return found


def when_of(done: RunState) -> NDArray[np.int32]:
    """In which step each number of the memory joined it, int32 ``[N]``; zeros if not known."""
    none = np.zeros(len(done.values.words), np.int32)
    found = done.estimator.state.get(WHEN, none)
    return found if found.shape == none.shape and found.dtype == none.dtype else none


def _holds(kept: _Kept, plain: str) -> bool:
    own = _plain(kept.text)
    return plain in own or (bool(own) and f" {own} " in f" {plain} ")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _row(tokens: list[int]) -> str:
    """Tokens so that one row of them holds another if its text does."""
    return f" {' '.join(map(str, tokens))} "

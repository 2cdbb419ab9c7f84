"""A memory of the user's words, beside a head for text: what was said after the same words before.

A head learns what somebody's words are like; a memory knows which they were. To the probability p
of a word are added its counts behind the last one, two and three words, shortest first:

    p = (1 - w) p + w c / T,    w = f T / (2 (T + 10 K))

where the words before stood T times, K different words came behind them, and this one c times:
n-grams interpolated as Witten and Bell (1991) do, on top of the model in place of a uniform
distribution. f, from 0 to 1, says how much the text so far is like the user's: how many of its last
sixteen pairs of words the memory knows (rising from three to seven in ten). So text that has
nothing to do with the user stays nearly what the head makes of it.

The words are float32 numbers among a run's values, the newest last: what they say is read off them
alone. A word's number plus 1 was said; with a minus it stood before what was said; 0 is a break.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError

WORDS = 32_768
"""Newest words that are kept: 128 kB; 1 600 messages of SmolLM2's chats are 31 000."""
A_STEP = 1_024
"""Words that a step keeps of its batch, three bytes each; longer texts lose their ends."""
_LEAST = 16
"""Of a text, where many share these."""
BEFORE = 3
"""Words that are looked back at."""
WINDOW, _UNLIKE, _LIKE = 16, 0.3, 0.7
"""Pairs before a word, and the shares of known ones from which it is taken for the user's."""
_BITS = 20
"""Of a word's number within a key: four words would not fit, three do."""
WHEN = "when"
"""Name of an estimator's state, int32 ``[N]``: in which step each number of a memory joined it."""
INDEX_BYTES = 200
"""What a word kept takes in the index, and while it is made."""


class Said(NamedTuple):
    """Words in a row that were learned from."""

    before: NDArray[np.int64]
    """int64 ``[n]``, n at most ``BEFORE``: the words in front of them."""
    words: NDArray[np.int64]
    """int64 ``[m]``."""


def to_bytes(texts: Sequence[Said]) -> NDArray[np.uint8]:
    """What a step keeps of its texts, uint8 ``[3 * A_STEP]``; each gets an equal part at most of
    what is left, but where they are too many the first ones get enough to say something."""
    kept: list[NDArray[np.int64]] = []
    left = A_STEP
    for number, text in enumerate(texts):
        part = min(left, max(_LEAST, left // (len(texts) - number)))
        whole = np.concatenate([[0], -1 - text.before, 1 + text.words])[:part]
        if (whole > 0).any():
            kept.append(whole)
            left -= len(whole)
    numbers = np.concatenate([*kept, np.zeros(left, np.int64)]).astype("<i4")
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, 4)[:, :3]).reshape(-1)


def of_step(step: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Numbers that join the memory in a step, float32 ``[n]``, of what ``to_bytes`` gave."""
    wide = np.zeros((len(step) // 3, 4), np.uint8)
    wide[:, 1:] = step.reshape(-1, 3)
    numbers = wide.reshape(-1).view("<i4") >> 8
    last = np.flatnonzero(numbers)
    return numbers[: last[-1] + 1 if len(last) else 0].astype(np.float32)


def added(kept: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """``kept`` ``[N]`` with ``new`` behind, without the oldest."""
    return np.concatenate([kept, new])[-len(kept) :]


def texts_in(words: NDArray[np.float32]) -> list[slice]:
    """Where each text stands in a memory ``[N]``, the oldest first; its break is left out."""
    there = np.flatnonzero(words)
    ends = np.flatnonzero(np.diff(there) > 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(there, ends + 1) if len(run)]


def tokens_of(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """Tokens of a text in a memory, int64 ``[n]``, those in front of what was said included."""
    return np.abs(numbers.astype(np.int64)) - 1


def left_of(kept: NDArray[Any], gone: Sequence[slice]) -> NDArray[Any]:
    """What is left of ``[N]`` numbers that go along with a memory once some texts are gone: the
    others with their breaks, at the end, behind zeros."""
    stays = np.ones(len(kept), bool)
    for text in gone:
        stays[max(0, text.start - 1) : text.stop] = False  # the break in front goes, too
    left = kept[stays]
    return np.concatenate([np.zeros(len(kept) - len(left), kept.dtype), left])


class _Counts(NamedTuple):
    """What came behind so many words, each array sorted by its first."""

    contexts: NDArray[np.int64]
    """int64 ``[M]``: keys of the words before."""
    total: NDArray[np.float64]
    """float64 ``[M]``: T."""
    weight: NDArray[np.float64]
    """float64 ``[M]``: w where f is 1."""
    pairs: NDArray[np.int64]
    """int64 ``[Q]``: number of a context, and the word behind."""
    times: NDArray[np.float64]
    """float64 ``[Q]``: c."""


class WordMemory:
    """An index of the words kept, made once."""

    def __init__(self, kept: NDArray[np.float32], vocabulary: int) -> None:
        """
        Args:
            kept: float32 ``[N]``, as among a run's values.

        Raises:
            TuningError: a number in it is no word of so large a vocabulary.
        """
        most = min(vocabulary, (1 << _BITS) - 1)
        good = (kept == np.round(kept)) & (np.abs(kept) <= most)
        if not good.all():
            place = int(np.flatnonzero(~good)[0])
            raise TuningError(
                f"the memory of words is damaged: entry {place} is {kept[place]:g}, no word of "
                f"{vocabulary}; take values of this bundle, or tune again"
            )
        numbers = _once(kept.astype(np.int64))
        words = np.abs(numbers) - 1
        near = np.minimum(words[:-1], words[1:]) >= 0
        self._known = np.unique(((words[:-1] << _BITS) + words[1:])[near])
        said = np.flatnonzero(numbers > 0)
        self._counts = [_counted(words, said, length) for length in range(1, BEFORE + 1)]

    def mixed(
        self,
        logp: NDArray[np.float32],
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Log-probabilities ``[N, C]`` of a batch's candidates with the memory's part.

        Args:
            tokens, positions, candidates: of the batch (see ``tasks.Batch``).
        """
        like = self._likeness(tokens, positions)
        found = logp.astype(np.float64)
        for length, counts in enumerate(self._counts, start=1):
            number, known = _find(counts.contexts, _keys(tokens, positions, length))
            weight = np.where(known, like * _at(counts.weight, number), 0.0)[:, None]
            place, said = _find(counts.pairs, (number[:, None] << _BITS) + candidates)
            total = _at(counts.total, number)[:, None]
            share = np.where(said & known[:, None], _at(counts.times, place) / total, 0.0)
            with np.errstate(divide="ignore"):  # what was never said adds nothing: log 0
                found = np.logaddexp(found + np.log1p(-weight), np.log(weight * share))
        return found.astype(np.float32)

    def mixed_next(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the next word, float32 ``[V]``, with the memory's part: log-probabilities, or
        those given where it has none.

        Args:
            logits: float32 ``[V]``, without it.
            tokens: the text so far.
        """
        row = np.array([tokens[-WINDOW - 1 :]], np.int64)
        last = np.array([row.shape[1] - 1])
        like = float(self._likeness(row, last)[0])
        if like == 0:
            return logits
        part: dict[int, float] = {}
        kept = 1.0
        for length, counts in enumerate(self._counts, start=1):
            number, known = _find(counts.contexts, _keys(row, last, length))
            if not known[0]:
                break
            weight = like * float(counts.weight[number[0]])
            first, end = np.searchsorted(counts.pairs, (number[0] + np.arange(2)) << _BITS)
            share = weight * counts.times[first:end] / counts.total[number[0]]
            words = counts.pairs[first:end] & ((1 << _BITS) - 1)
            kept *= 1 - weight
            part = {word: old * (1 - weight) for word, old in part.items()}
            for word, more in zip(words.tolist(), share.tolist(), strict=True):
                part[word] = part.get(word, 0.0) + more
        if not part:
            return logits
        top = float(logits.max())
        whole = top + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
        found = logits - np.float32(whole - np.log(kept))
        words, share = np.array(list(part)), np.log(np.array(list(part.values())))
        found[words] = np.logaddexp(found[words].astype(np.float64), share)
        return found

    def _likeness(
        self, tokens: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """f at each position, float64 ``[N]``; to few pairs one as of unlike text is added."""
        pairs = (tokens[:, :-1] << _BITS) + tokens[:, 1:]
        known = _find(self._known, pairs)[1]
        so_far = np.concatenate([np.zeros((len(tokens), 1)), np.cumsum(known, axis=1)], axis=1)
        row, column = positions // tokens.shape[1], positions % tokens.shape[1]
        count = np.minimum(column, WINDOW)
        share = (so_far[row, column] - so_far[row, column - count] + _UNLIKE) / (count + 1)
        return np.asarray(np.clip((share - _UNLIKE) / (_LIKE - _UNLIKE), 0, 1))


def _once(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each text once, with breaks between them, though a run may have passed over it often, and
    cut it elsewhere each time. So what somebody says again behind the same words counts once."""
    filled = np.trim_zeros(numbers, "f")
    texts = np.split(filled, np.flatnonzero(filled == 0))
    different = sorted({text[text != 0].tobytes() for text in texts})
    # What begins like another stands right in front of one that does.
    pairs = zip(different, [*different[1:], b""], strict=True)
    whole = [np.frombuffer(text, np.int64) for text, after in pairs if not after.startswith(text)]
    between = np.zeros(1, np.int64)
    return np.concatenate([part for text in whole for part in (between, text)] + [between])


def _counted(words: NDArray[np.int64], said: NDArray[np.intp], length: int) -> _Counts:
    """What came behind ``length`` words, of ``words`` (-1 for a break) those at ``said``."""
    places = said[said >= length]
    whole = np.ones(len(places), bool)
    key = np.zeros(len(places), np.int64)
    for back in range(length, 0, -1):
        word = words[places - back]
        whole &= word >= 0
        key = (key << _BITS) + word
    contexts, which = np.unique(key[whole], return_inverse=True)
    pairs, count = np.unique((which << _BITS) + words[places[whole]], return_counts=True)
    total = np.bincount(which, minlength=len(contexts)).astype(np.float64)
    kinds = np.bincount(pairs >> _BITS, minlength=len(contexts))
    weight = total / (2 * (total + 10 * kinds))
    return _Counts(contexts, total, weight, pairs, count.astype(np.float64))


def _keys(
    tokens: NDArray[np.int64], positions: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """Of the ``length`` words that end at each position, int64 ``[N]``; -1 where there are not so
    many."""
    flat, column = tokens.reshape(-1), positions % tokens.shape[1]
    key = np.zeros(len(positions), np.int64)
    for back in range(length - 1, -1, -1):
        key = (key << _BITS) + flat[np.maximum(positions - back, 0)]
    return np.where(column >= length - 1, key, -1)


def _find(
    sorted_keys: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each wanted key stands or would, and whether it does."""
    place = np.searchsorted(sorted_keys, wanted)
    if not len(sorted_keys):
        return place, np.zeros(wanted.shape, bool)
    place = np.minimum(place, len(sorted_keys) - 1)
    return place, sorted_keys[place] == wanted


def _at(values: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float64]:
    """``values[places]``, of no values ones."""
    return values[places] if len(values) else np.ones(places.shape)

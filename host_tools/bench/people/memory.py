"""What needs no tuning: word counts of a person, and nearest neighbours of hidden states.

Both mix a distribution of the person's own words into that of the untouched int4 program. How much
is chosen on held-out messages, and may be nothing.

* N-grams: one to three words, each smoothed by the shorter one (Witten and Bell, 1991; see Chen and
  Goodman, "An empirical study of smoothing techniques", 1998, section 2.6).
* kNN-LM (Khandelwal et al., arXiv 1911.00172): the words that followed the most similar states.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.engines.system_memory import peak_resident_bytes

from ..measuring.timing import Stopwatch
from ..measuring.tuning_run import Progress
from .data import Person
from .program_words import ProgramWords, Seen

WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.3)
NEIGHBOURS = 64
TEMPERATURES = (0.03, 0.1)
"""Of the cosine of two states."""

Own = Callable[[Seen, slice], NDArray[np.float32]]
"""A person's distribution float32 ``[n, V]`` at some of the positions seen."""


def run(person: Person, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Learn ``settings["memory"]``, ``ngram`` or ``knn``, from a person's messages.

    Returns:
        ``test`` and ``other`` as ``judged.judged`` has them; ``chosen``.
    """
    words = ProgramWords(settings)
    if settings["messages"] == 0:
        return _judged(words, person, None, 0.0)
    watch = Stopwatch()
    train = words.see(words.messages(person.train))
    held_out = words.see(words.messages(person.held_out))
    kinds: dict[Any, Own]
    if settings["memory"] == "ngram":
        kinds = {"ngram": NGrams(train, words.vocabulary).distribution}
    else:
        kinds = {
            heat: Neighbours(train, words.vocabulary, heat).distribution for heat in TEMPERATURES
        }
    untouched = float(held_out.logp.mean())
    losses: dict[Any, float] = {(None, 0.0): -untouched}
    for kind, own in kinds.items():
        likely = _of_words(own, held_out)
        for weight in WEIGHTS:
            mixed = np.log((1 - weight) * np.exp(held_out.logp) + weight * likely)
            losses[kind, weight] = -float(mixed.mean())
    kind, weight = min(losses, key=lambda choice: losses[choice])
    progress(f"{settings['memory']} {kind}, weight {weight}: {losses[kind, weight]:.4f}")
    spent = {**watch.read()._asdict(), "peak_rss_bytes": peak_resident_bytes()}
    return {**_judged(words, person, kinds.get(kind), weight), **spent, "chosen": [kind, weight]}


def _judged(words: ProgramWords, person: Person, own: Own | None, weight: float) -> dict[str, Any]:
    texts = {"test": words.messages(person.test), "other": words.other_text()}
    return {name: words.figures(words.see(batches), own, weight) for name, batches in texts.items()}


def _of_words(own: Own, seen: Seen) -> NDArray[np.float64]:
    """What ``own`` gives the words that came, float64 ``[n]``."""
    parts = []
    for part in seen.parts():
        gold = seen.gold[part]
        parts.append(own(seen, part)[np.arange(len(gold)), gold].astype(np.float64))
    return np.concatenate(parts)


class NGrams:
    """Counts of one to three words, from the positions seen."""

    def __init__(self, seen: Seen, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._counts: dict[tuple[int, ...], Counter[int]] = {}
        for context, word in zip(seen.context.tolist(), seen.gold.tolist(), strict=True):
            for length in range(3):
                key = tuple(context[len(context) - length :])
                self._counts.setdefault(key, Counter())[word] += 1

    def distribution(self, seen: Seen, part: slice) -> NDArray[np.float32]:
        rows = np.full((len(seen.gold[part]), self._vocabulary), 1 / self._vocabulary, np.float32)
        for row, context in zip(rows, seen.context[part].tolist(), strict=True):
            for length in range(3):
                counts = self._counts.get(tuple(context[len(context) - length :]))
                if counts is None:
                    break
                kinds, total = len(counts), counts.total()
                row *= kinds / (total + kinds)
                row[list(counts)] += np.array(list(counts.values())) / (total + kinds)
        return rows


class Neighbours:
    """What the output head read at the positions seen, and the words that followed."""

    def __init__(self, seen: Seen, vocabulary: int, temperature: float) -> None:
        self._keys, self._words = unit(seen.read), seen.gold
        self._vocabulary, self._temperature = vocabulary, temperature

    def distribution(self, seen: Seen, part: slice) -> NDArray[np.float32]:
        cosine = unit(seen.read[part]) @ self._keys.T
        count = min(NEIGHBOURS, len(self._keys))
        near = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        close = np.take_along_axis(cosine, near, axis=1)
        weights = np.exp((close - close.max(axis=1, keepdims=True)) / self._temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        rows = np.zeros((len(cosine), self._vocabulary), np.float32)
        for row, place in itertools.product(range(len(rows)), range(count)):
            rows[row, self._words[near[row, place]]] += weights[row, place]
        return rows


def unit(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    found: NDArray[np.float32] = states / np.linalg.norm(states, axis=1, keepdims=True)
    return found

"""The output head's words, as the program holds them: what each text token's gradient is made of.

Of a token's loss by what the head reads, ``h``, the gradient is exact: ``W' (p - y)``, the mean
word vector under the head's own probabilities p less the vector of the word said. W lies in the
program's file as int4 codes; here it is mapped and made float32 in blocks of words, so that memory
does not grow with the vocabulary.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from .int4_matrix import WeightsFile, unpacked

_BLOCK = 1 << 21
"""Weights that stand in float32 at once: 8 MB."""
_CANCELLED = 1e-6
TOKENS = 512
"""Tokens whose logits for a block stand at once."""


class WordTable:
    """Vectors of all words, float32 by need. ``codes`` and ``scales`` are read, never changed."""

    def __init__(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint16],
        softcap: float | None = None,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            codes: uint8 ``[V, D / 2]``; see ``WordsPlace``.
            scales: bfloat16 as uint16 ``[V, D / 32]``.
            softcap: bound of the logits, ``cap * tanh(logit / cap)``.
            give_back: called when a block of words was read; see ``WeightsFile``.
        """
        self._codes, self._scales, self._softcap = codes, scales, softcap
        self._give_back = give_back
        self._block = max(1, _BLOCK // (2 * codes.shape[1]))

    @classmethod
    def of(cls, bundle: Bundle) -> "WordTable":
        """Mapped from the program's file of a bundle that has a ``text_head``.

        Raises:
            BundleError: there is another file since the bundle was opened.
        """
        info = bundle.text_head
        assert info is not None and bundle.adapter is not None
        shape = bundle.vocab_size, bundle.adapter.width
        with bundle.checked(info.words.file) as path:
            file = WeightsFile(path)
        mapped = file.int4(info.words.codes, info.words.scales, shape)
        return cls(*mapped, info.softcap, file.give_back)

    def vectors(self, words: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """float32 ``[N, D]``."""
        return unpacked(self._codes[words], self._scales[words])

    def expected(
        self, read: NDArray[np.float32], words: NDArray[np.int64], rare: float = 0.0
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
        """Of each token, from what the head reads, float32 ``[N, D]``.

        Args:
            rare: words with less than this part of all tokens' probability are drawn by it, and
                those drawn stand for the others too: the mean is right on average, and faster.

        Returns:
            the mean word vector under the head's probabilities, float32 ``[N, D]``; the
            log-probability of the word said, float64 ``[N]``; and the part of that word's own
            vector in the gradient, float32 ``[N]``: 1 without a softcap. With one, the mean is
            weighted by its slope too.
        """
        parts = [
            self._expected(read[first : first + TOKENS], words[first : first + TOKENS], rare)
            for first in range(0, len(read), TOKENS)
        ]
        mean, logp, slope = (np.concatenate(each) for each in zip(*parts, strict=True))
        return mean, logp, slope

    def _expected(
        self, read: NDArray[np.float32], words: NDArray[np.int64], rare: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
        """With a running maximum over blocks of words (as in arXiv 1805.02867, algorithm 3)."""
        count = len(read)
        top = np.full(count, -np.inf, np.float32)
        total, mean = np.zeros(count, np.float32), np.zeros_like(read)
        own, own_slope = np.zeros(count, np.float32), np.ones(count, np.float32)
        for first in range(0, len(self._codes), self._block):
            vectors = self.vectors(slice(first, first + self._block))
            self._give_back()
            logits = read @ vectors.T
            slope = None
            if self._softcap is not None:
                cap = np.float32(self._softcap)
                np.tanh(logits / cap, out=logits)
                slope = 1 - np.square(logits)
                logits *= cap
            here = np.flatnonzero((words >= first) & (words < first + len(vectors)))
            own[here] = logits[here, words[here] - first]
            if slope is not None:
                own_slope[here] = slope[here, words[here] - first]
            higher = np.maximum(top, logits.max(axis=1))
            shrunk = np.exp(top - higher)
            logits -= higher[:, None]
            np.exp(logits, out=logits)
            total = total * shrunk + logits.sum(axis=1)
            part = np.reciprocal(total) @ logits / np.float32(count) if rare else None
            if slope is not None:
                logits *= slope
            if part is not None:
                drawn, chance = _draw(part / np.float32(rare))
                logits, vectors = logits[:, drawn], vectors[drawn]
                logits /= chance
            mean *= shrunk[:, None]
            mean += logits @ vectors
            top = higher
        mean /= total[:, None]
        logp = own.astype(np.float64) - top - np.log(total.astype(np.float64))
        return mean, logp, own_slope

    def gradient(
        self,
        read: NDArray[np.float32],
        words: NDArray[np.int64],
        by_logp: NDArray[np.float64],
        rare: float,
    ) -> NDArray[np.float32]:
        """By what the head reads (float32 ``[N, D]``), float32 ``[N, D]``, of a loss whose gradient
        by the log-probabilities of ``words`` (int64 ``[N, C]``) is ``by_logp`` (``[N, C]``).

        Args:
            rare: as in ``expected``.
        """
        vectors = self.vectors(words.reshape(-1)).reshape(*words.shape, -1)
        weights = by_logp.astype(np.float32)
        if self._softcap is not None:
            logits = np.einsum("nd,ncd->nc", read, vectors)
            weights = weights * (1 - np.square(np.tanh(logits / np.float32(self._softcap))))
        found = np.einsum("nc,ncd->nd", weights, vectors)
        total = by_logp.sum(axis=1, keepdims=True).astype(np.float32)
        if np.abs(total).max() > _CANCELLED:  # else what all words share cancels
            found -= total * self.expected(read, words[:, 0], rare)[0]
        return np.asarray(found, np.float32)

    @property
    def memory_bytes(self) -> int:
        """What ``expected`` takes at its peak: a block, its codes as floats and the words drawn of
        it; logits, their slopes and those drawn; and the block's mapped pages."""
        return int((3 * 4 + 1) * _BLOCK + 4 * 4 * TOKENS * self._block)


def _draw(odds: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Numbers of the words drawn, each with probability ``min(1, odds)``, and that probability.

    Systematic sampling (Madow and Madow, 1944): of words in a row whose probabilities add up to 1,
    one is drawn. It takes no seed: nobody ordered the vocabulary by what is said here, so where a
    row happens to end is as good as random, and the same tokens always draw the same words.
    """
    chance = np.minimum(odds, np.float32(1))
    ends = np.cumsum(chance, dtype=np.float64) + 0.5
    drawn = np.flatnonzero(np.floor(ends) > np.floor(ends - chance))
    return drawn, chance[drawn]

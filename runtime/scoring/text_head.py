"""A head for text: the words that follow also depend, linearly, on states that every forward has.

``h' = h + A x``: what the output head reads is moved by a linear map of the token's own tapped
states, which the program takes as an input. Learned are the weights M ``[O, I]`` of
``A = size * Qg M Qx'`` (see ``bundle.text_frame``). Their gradient needs no backward pass: all of
it lies behind the last hidden state. What a run keeps of one is a ``text_part``.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, TextFrame
from .word_memory import WordMemory
from .word_table import TOKENS, WordTable

RARE = 1e-5
"""Words with a smaller part of a batch's probability are drawn. On SmolLM2 a quarter of all words
is left; a step's gradient is off by 1 % of its length and takes 0.7 of the time. At 2.5e-5 it is
off by 3 %, for 0.68."""


class TokenGradient(NamedTuple):
    """Of a batch's tokens, and of generic ones."""

    gradient: NDArray[np.float32]
    """float32 ``[O, I]``: of the mean loss of the batch's tokens by M, and of the pull; right on
    average (``RARE``)."""
    logp: NDArray[np.float64]
    """float64 ``[N]``: log-probability of each word said."""


class TextHead:
    """What can be learned of a model; frame and words are read when they are first needed."""

    def __init__(
        self,
        shape: tuple[int, int],
        vocabulary: int,
        load_frame: Callable[[], TextFrame],
        load_words: Callable[[], WordTable],
    ) -> None:
        self.shape = shape
        """``(O, I)``."""
        self.entries = shape[0] * shape[1]
        """Number of weights: ``O * I``."""
        self.vocabulary = vocabulary
        self._load_frame, self._load_words = load_frame, load_words
        self._adapter: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._memory: tuple[NDArray[np.float32], WordMemory | None] | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> "TextHead | None":
        """Of a bundle; None where it has nothing for one."""
        info = bundle.text_head
        if info is None:
            return None
        shape = info.outputs, info.inputs
        return cls(shape, bundle.vocab_size, bundle.text_frame, lambda: WordTable.of(bundle))

    @cached_property
    def frame(self) -> TextFrame:
        """Read once."""
        return self._load_frame()

    @cached_property
    def words(self) -> WordTable:
        """Mapped once."""
        return self._load_words()

    @cached_property
    def _bases(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Qx and Qg, with the states' scales in Qx."""
        inputs = self.frame.scales[:, None] * self.frame.inputs.astype(np.float32)
        return inputs, self.frame.outputs.astype(np.float32)

    def memory(self, words: NDArray[np.float32]) -> WordMemory | None:
        """The words, float32 as ``word_memory`` keeps them, with their index; None of zeros or
        none. The last one is kept, as ``adapter`` keeps its own.

        Raises:
            TuningError: they are no words.
        """
        if self._memory is None or not np.array_equal(self._memory[0], words):
            self._memory = None  # two at once would take twice the memory
            found = WordMemory(words, self.vocabulary) if words.any() else None
            self._memory = words.copy(), found
        return self._memory[1]

    def adapter(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """A, float32 ``[D, S]``, of weights float32 ``[O * I]``; the last one is kept, since every
        pass of an evaluation asks for the same."""
        if self._adapter is None or not np.array_equal(self._adapter[0], weights):
            inputs, outputs = self._bases
            moved = outputs @ weights.reshape(self.shape) @ inputs.T
            found = np.asarray(moved, np.float32)
            found *= self.frame.size
            self._adapter = weights.copy(), found
        return self._adapter[1]

    def gradient(
        self,
        weights: NDArray[np.float32],
        states: NDArray[np.float32],
        words: NDArray[np.int64],
        generic: NDArray[np.int64],
        pull: float,
    ) -> TokenGradient:
        """Where the weights (float32 ``[O * I]``) are, of what these texts ask for.

        Args:
            states: float32 ``[N, S]`` of the batch's scored tokens.
            words: int64 ``[N]``, what was said there.
            generic: numbers of the generic tokens that hold the head where it is.
            pull: weight of their divergence from the untouched model, whose gradient by what the
                head reads is ``W' (p - p_untouched)``.
        """
        gradient = np.zeros(self.shape, np.float32)
        logp = np.empty(len(states), np.float64)
        count = len(states)
        for first in range(0, count + len(generic), TOKENS):
            said = slice(first, min(first + TOKENS, count))
            held = generic[max(0, first - count) : max(0, first + TOKENS - count)]
            residual, along, logp[said] = self._part(
                weights, states[said], words[said], held, pull * count / max(1, len(generic))
            )
            gradient += residual.T @ along
        gradient /= np.float32(count)
        return TokenGradient(gradient, logp)

    def _part(
        self,
        weights: NDArray[np.float32],
        states: NDArray[np.float32],
        words: NDArray[np.int64],
        generic: NDArray[np.int64],
        pull: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Of each token, generic ones last, the gradient by what the head reads along Qg, float32
        ``[N + G, O]``, and the state along Qx, float32 ``[N + G, I]``; of the words said their
        log-probabilities. The words' vectors are made once for all."""
        count, frame = len(states), self.frame
        both = np.concatenate([states, frame.states[generic].astype(np.float32)])
        read, along = self._read(weights, both)
        said = np.concatenate([words, np.zeros(len(generic), np.int64)])
        mean, logp, slope = self.words.expected(read, said, RARE)
        mean[:count] -= slope[:count, None] * self.words.vectors(words)
        residual = mean @ self._bases[1]
        residual[count:] -= frame.expected[generic].astype(np.float32)
        residual[count:] *= np.float32(pull)
        return residual, along, logp[:count]

    def _read(
        self, weights: NDArray[np.float32], states: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the head reads, float32 ``[N, D]``, and the states along Qx, float32 ``[N, I]``."""
        inputs, outputs = self._bases
        along = states @ inputs
        moved = along @ weights.reshape(self.shape).T @ outputs.T
        read = np.asarray(moved, np.float32)
        read *= self.frame.size
        read += self.frame.read(states)
        return read, along

    @property
    def memory_bytes(self) -> int:
        """What learning and scoring hold: the part, its bases in float32, the adapter and its
        product, and what ``gradient`` takes."""
        frame = self.frame
        bases = 4 * (frame.inputs.size + frame.outputs.size)
        part = 2 * (
            frame.inputs.size + frame.outputs.size + frame.states.size + frame.expected.size
        )
        adapter = 4 * len(frame.weight) * len(frame.inputs)
        tokens = 4 * TOKENS * (3 * len(frame.inputs) + 4 * len(frame.weight))
        return part + bases + 2 * adapter + tokens + self.words.memory_bytes

"""A head for text: the words that follow also depend, linearly, on states that every forward has.

``h' = h + A x``: what the output head reads is moved by a linear map of the token's own tapped
states, which the program takes as an input. Learned are the weights M ``[O, I]`` of
``A = size * Qg M Qx'`` (see ``bundle.text_head``). Their gradient needs no backward pass: all of
it lies behind the last hidden state. Where the program takes terms of its upper blocks, these are
learned behind M, by the same gradient handed down (see ``block_terms``). What a run keeps of one is
a ``text_part``.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, TextFrame
from .block_terms import BlockTerms, Inside
from .word_memory import WordMemory
from .word_table import TOKENS, WordTable

RARE = 1e-5
"""Words with a smaller part of a batch's probability are drawn. On SmolLM2 a quarter of all words
is left; a step's gradient is off by 1 % of its length and takes 0.7 of the time. At 2.5e-5 it is
off by 3 %, for 0.68."""


class TokenGradient(NamedTuple):
    """Of a batch's tokens, and of generic ones."""

    gradient: NDArray[np.float32]
    """float32 ``[O * I]``, terms behind: of the mean loss of the batch's tokens, and of the pull;
    right on average (``RARE``)."""
    logp: NDArray[np.float64]
    """float64 ``[N]``: log-probability of each word said."""


class Observed(NamedTuple):
    """Tokens that a forward gave states of."""

    states: NDArray[np.float32]
    """float32 ``[N, S]``: what an adapter reads."""
    words: NDArray[np.int64]
    """int64 ``[N]``: what was said there; of generic text the token's number in the frame."""
    inside: Inside | None = None
    """What terms are learned from, where they are."""


class TextHead:
    """What can be learned of a model; frame and words are read when they are first needed."""

    def __init__(
        self,
        shape: tuple[int, int],
        vocabulary: int,
        load_frame: Callable[[], TextFrame],
        load_words: Callable[[], WordTable],
        terms: BlockTerms | None = None,
    ) -> None:
        """Args: terms: what can be learned below it."""
        self.terms = terms
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
        words = partial(WordTable.of, bundle)
        return cls(shape, bundle.vocab_size, bundle.text_frame, words, BlockTerms.of(bundle))

    @property
    def width(self) -> int:
        """S, of the states that it reads."""
        return len(self.frame.inputs)

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
        tokens: Observed,
        generic: Observed,
        pull: float,
    ) -> TokenGradient:
        """Where the weights (float32 ``[O * I]``, or terms behind) are, of what these texts ask
        for.

        Args:
            tokens: the batch's scored tokens, and what was said there.
            generic: those that hold the head where it is, by their numbers in the frame.
            pull: weight of their divergence from the untouched model, whose gradient by what the
                head reads is ``W' (p - p_untouched)``.
        """
        head, learned = weights[: self.entries], weights[self.entries :]
        gradient = np.zeros(self.shape, np.float32)
        logp = np.empty(len(tokens.words), np.float64)
        count, all_tokens = len(tokens.words), len(tokens.words) + len(generic.words)
        upon = np.empty((all_tokens if len(learned) else 0, len(self.frame.inputs)), np.float32)
        for first in range(0, all_tokens, TOKENS):
            said = slice(first, min(first + TOKENS, count))
            held = slice(max(0, first - count), max(0, first + TOKENS - count))
            residual, along, logp[said] = self._part(
                head,
                Observed(tokens.states[said], tokens.words[said]),
                Observed(generic.states[held], generic.words[held]),
                pull * count / max(1, len(generic.words)),
            )
            gradient += residual.T @ along
            if len(learned):
                upon[first : first + TOKENS] = self._by_states(head, residual)
        below = np.empty(0, np.float32)
        if len(learned):
            assert self.terms is not None and tokens.inside is not None and generic.inside
            states = np.concatenate([tokens.states, generic.states])
            inside = tokens.inside.followed_by(generic.inside)
            below = self.terms.gradient(learned, inside, states, upon)
        found = np.concatenate([gradient.reshape(-1), below])
        found /= np.float32(count)
        return TokenGradient(found, logp)

    def by_states(
        self,
        states: NDArray[np.float32],
        words: NDArray[np.int64],
        by_logp: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Without a head: from a loss's gradient by the log-probabilities of ``words`` (int64 and
        float64 ``[N, C]``) that by the states, float32 ``[N, S]``, of which only the last counts.
        """
        found = np.zeros_like(states)
        by_read = self.words.gradient(self.frame.read(states), words, by_logp, RARE)
        found[:, -len(self.frame.weight) :] = by_read * self.frame.weight
        return found

    def pull_by_states(self, generic: Observed) -> NDArray[np.float32]:
        """Likewise of generic tokens' divergence from the untouched model (see ``gradient``)."""
        untouched = np.zeros(self.entries, np.float32)
        none = Observed(generic.states[:0], generic.words[:0])
        residual, _, _ = self._part(untouched, none, generic, 1.0)
        return self._by_states(untouched, residual)

    def _part(
        self, weights: NDArray[np.float32], tokens: Observed, generic: Observed, pull: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Of each token, generic ones last, the gradient by what the head reads along Qg, float32
        ``[N + G, O]``, and the state along Qx, float32 ``[N + G, I]``; of the words said their
        log-probabilities. The words' vectors are made once for all."""
        count = len(tokens.words)
        read, along = self._read(weights, np.concatenate([tokens.states, generic.states]))
        said = np.concatenate([tokens.words, np.zeros(len(generic.words), np.int64)])
        mean, logp, slope = self.words.expected(read, said, RARE)
        mean[:count] -= slope[:count, None] * self.words.vectors(tokens.words)
        residual = mean @ self._bases[1]
        residual[count:] -= self.frame.expected[generic.words].astype(np.float32)
        residual[count:] *= np.float32(pull)
        return residual, along, logp[:count]

    def _by_states(
        self, weights: NDArray[np.float32], residual: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The gradient by the states, float32 ``[N, S]``, of that by what the head reads along
        Qg: by what the adapter makes of them, and by the last one, which the head reads itself."""
        inputs, outputs = self._bases
        found = residual @ weights.reshape(self.shape) @ inputs.T
        found *= self.frame.size
        last = residual @ outputs.T
        last *= self.frame.weight
        found[:, -len(self.frame.weight) :] += last
        return np.asarray(found, np.float32)

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

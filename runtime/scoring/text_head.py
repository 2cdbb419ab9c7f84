"""A head for text: the words that follow also depend, linearly, on states that every forward has.

``h' = h + A x``: what the output head reads is moved by a linear map of the token's own tapped
states, which the program takes as an input. Learned are the weights M ``[O, I]`` of
``A = size * Qg M Qx'`` (see ``bundle.text_frame``); they follow the K sensitive values in a run's
values. Their gradient needs no backward pass: all of it lies behind the last hidden state.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, TextFrame
from .word_table import WordTable


class TokenGradient(NamedTuple):
    """Of a batch's tokens, and of generic ones."""

    gradient: NDArray[np.float32]
    """float32 ``[O, I]``: of the mean loss of the batch's tokens by M, and of the pull."""
    logp: NDArray[np.float64]
    """float64 ``[N]``: log-probability of each word said."""


class TextHead:
    """What can be learned of a model; frame and words are read when they are first needed."""

    def __init__(
        self,
        shape: tuple[int, int],
        load_frame: Callable[[], TextFrame],
        load_words: Callable[[], WordTable],
    ) -> None:
        self.shape = shape
        """``(O, I)``."""
        self.entries = shape[0] * shape[1]
        """Number of weights: ``O * I``."""
        self._load_frame, self._load_words = load_frame, load_words
        self._adapter: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> "TextHead | None":
        """Of a bundle; None where it has nothing for one."""
        info = bundle.text_head
        if info is None:
            return None
        shape = info.outputs, info.inputs
        return cls(shape, bundle.text_frame, lambda: WordTable.of(bundle))

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

    def adapter(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """A, float32 ``[D, S]``, of weights float32 ``[O * I]``; the last one is remembered, since
        every pass of an evaluation asks for the same."""
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
        frame, (inputs, outputs) = self.frame, self._bases
        count = len(states)
        both = np.concatenate([states, frame.states[generic].astype(np.float32)])
        along = both @ inputs
        moved = along @ weights.reshape(self.shape).T @ outputs.T
        read = np.asarray(moved, np.float32)
        read *= frame.size
        read += frame.read(both)
        said = np.concatenate([words, np.zeros(len(generic), np.int64)])
        mean, logp, slope = self.words.expected(read, said)
        own = mean[:count] - slope[:count, None] * self.words.vectors(words)
        apart = mean[count:] @ outputs - frame.expected[generic].astype(np.float32)
        residual = np.concatenate(
            [(own @ outputs) / np.float32(count), apart * np.float32(pull / max(1, len(generic)))]
        )
        return TokenGradient(residual.T @ along, logp[:count])

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
        return part + bases + 2 * adapter + self.words.memory_bytes

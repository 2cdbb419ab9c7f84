"""What a bundle says of a head for text that can be learned with it (see ``text_frame``)."""

from dataclasses import dataclass

WORDS_GROUP = 32
"""Codes of the output head's int4 weights that share a scale."""
MOST_MOVED = 1 << 24
"""Numbers that a head may have to learn."""


@dataclass(frozen=True)
class WordsPlace:
    """Where the output head's int4 weights lie, word after word, in a program's file."""

    file: str
    codes: int
    """Offset of uint8 ``[V, D / 2]``: two codes a byte, the first in its lower half; 8 is zero."""
    scales: int
    """Offset of bfloat16 ``[V, D / 32]``, little-endian: of each 32 codes."""

    @staticmethod
    def sizes(words: int, width: int) -> tuple[int, int]:
        """Bytes of the codes and of the scales."""
        return words * width // 2, words * (width // WORDS_GROUP) * 2


@dataclass(frozen=True)
class TextHeadInfo:
    """Sizes of the head, and where it finds the words."""

    outputs: int
    """O: directions of what the output head reads along which it moves."""
    inputs: int
    """I: directions of the states that it reads."""
    words: WordsPlace
    softcap: float | None
    """Bound of the logits, ``cap * tanh(logit / cap)``, where the model has one."""

    @property
    def entries(self) -> int:
        """Numbers that are learned."""
        return self.outputs * self.inputs

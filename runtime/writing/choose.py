"""Which token comes next: how it is to be chosen, and the choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


@dataclass(frozen=True)
class Manner:
    """How the next token is chosen, and when the text ends.

    Raises:
        DataError: a field is out of its range; the message names it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token each time; 1 draws by the model's own probabilities."""
    top_p: float = 1.0
    """Draws from the likeliest tokens that have this share of the probability together (Holtzman et
    al., arXiv 1904.09751, section 3.1)."""
    seed: int = 0
    """Seed of the draws: the same seed gives the same text, on the same engine and threads."""
    stop: tuple[str, ...] = ()
    """The text ends before any of these."""
    repetition_penalty: float | None = None
    """Taken from the logit of a token that would go on as the text did after the same tokens, more
    for each of them (see ``without_repeats``); 0 for none. None is ``PENALTY`` where writing was
    learned from texts, and otherwise 0."""

    def __post_init__(self) -> None:
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            raise DataError(f"max_tokens is {self.max_tokens!r:.40}, must be at least 1")
        if not (0 <= self.temperature <= 100 and math.isfinite(self.temperature)):
            raise DataError(f"temperature is {self.temperature!r:.40}, must lie in 0 to 100")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p is {self.top_p!r:.40}, must lie above 0 and not above 1")
        if type(self.seed) is not int or not 0 <= self.seed < 2**64:
            raise DataError(f"seed is {self.seed!r:.40}, must lie in 0 to 2**64 - 1")
        penalty = self.repetition_penalty
        if penalty is not None and not 0 <= penalty <= 100:
            raise DataError(f"repetition_penalty is {penalty!r:.40}, must lie in 0 to 100")
        for number, text in enumerate(self.stop):
            if not isinstance(text, str) or not text:
                raise DataError(f"stop[{number}] is {text!r:.40}: it must be text with a character")


PENALTY = 1.0
"""Where writing was learned from somebody's texts, unless one is asked for. A small model repeats
the phrases that it learned: SmolLM2, on 1 000 messages, in 6 of 20 answers, with it in none; real
later messages of the same person become 0.5 % less likely a token (0.2 % at half of it, 1.4 % at
twice; ``host_tools/bench/results/text_head.md``). As exported there is none: other programs write
the same text, and what repeats by its nature (tables, code) is left alone."""
GROWTH, LONGEST = 1.5, 16
"""Growth of a penalty with each more repeated token, and the longest phrase looked for."""


def without_repeats(
    logits: NDArray[np.float32], written: Sequence[int], penalty: float
) -> NDArray[np.float32]:
    """Logits, float32 ``[V]``, in which what would repeat a phrase of ``written`` is less likely.

    Where the last n tokens stood before in ``written``, the token that followed them there loses
    ``penalty * GROWTH ** (n - 1)``, of the longest such phrase (as the sampler DRY does it). So one
    word again costs little, and a loop soon more than any other way on.
    """
    if not penalty or len(written) < 2:
        return logits
    longest: dict[int, int] = {}
    end = len(written) - 1
    for place in range(end):
        length = 0
        while length < min(place + 1, LONGEST) and written[place - length] == written[end - length]:
            length += 1
        if length:
            token = written[place + 1]
            longest[token] = max(length, longest.get(token, 0))
    found = logits.copy()
    for token, length in longest.items():
        found[token] -= penalty * GROWTH ** (length - 1)
    return found


def choose(logits: NDArray[np.float32], manner: Manner, place: int) -> int:
    """The token to write at ``place``, counted from the answer's first token.

    Draws are counter-based: token ``place`` takes the first word of the Philox 4x64 stream with the
    key ``(seed, place)``, so that what was drawn before has no part in it.

    Args:
        logits: float32 ``[V]``, finite.
    """
    if manner.temperature == 0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - float(logits.max())) / manner.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    tokens = np.arange(len(logits))
    if manner.top_p < 1:
        # All tokens below this have less than what top_p leaves, so the rest has enough.
        tokens = np.flatnonzero(probabilities >= (1 - manner.top_p) / len(logits))
        tokens = tokens[np.argsort(-probabilities[tokens], kind="stable")]
        shares = np.cumsum(probabilities[tokens])
        tokens = tokens[: 1 + int(np.searchsorted(shares, manner.top_p))]
    shares = np.cumsum(probabilities[tokens])
    stream = np.random.Philox(key=np.array([manner.seed, place], dtype=np.uint64))
    drawn = float(stream.random_raw(1)[0] >> np.uint64(11)) * 2.0**-53 * float(shares[-1])
    return int(tokens[min(int(np.searchsorted(shares, drawn, side="right")), len(tokens) - 1)])

"""Which token comes next."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .manner import Manner

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

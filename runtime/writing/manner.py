"""How a text is written."""

import math
from dataclasses import dataclass

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
    for each of them (see ``choose.without_repeats``); 0 for none. None is ``choose.PENALTY`` where
    writing was learned from texts, and otherwise 0."""

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

"""What a device sends where there is a guarantee: cut to a length, with noise of its own.

Each device adds Gaussian noise whose deviation is ``noise * clip``, so that what it is protected by
hangs neither on the server nor on other devices. The sum over K devices has the root of K times
that, which protects better: ``Release.effective``.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError


@dataclass
class Release:
    """The server's side."""

    clip: float | None
    """Length of a device's numbers; None bounds nothing, and one device can do what it likes."""
    noise: float = 0.0
    """Deviation of each device's noise, in clips."""
    fewest: int = 0
    """Answers of the round that had the fewest; 0 before the first."""

    def __post_init__(self) -> None:
        if self.noise and self.clip is None:
            raise TuningError("noise is measured in clips: give a clip")

    @property
    def question(self) -> dict[str, float]:
        """What devices must know."""
        return {} if self.clip is None else {"clip": self.clip, "noise": self.noise}

    @property
    def effective(self) -> float:
        """The noise that the sums of all rounds have at least, in clips: what to account for."""
        return float(self.noise * self.fewest**0.5)

    def check(self, sent: NDArray[Any]) -> None:
        """ValueError for numbers that no device can have cut and noised so."""
        if self.clip is None:
            return
        room = self.noise * (sent.size**0.5 + 6)
        if float(np.linalg.norm(sent)) > self.clip * (1 + 1e-5 + room):
            raise ValueError("numbers longer than the clip")

    def count(self, present: int) -> None:
        """Note how many answered."""
        self.fewest = min(self.fewest or present, present)


def noise_of(question: Mapping[str, Any]) -> float:
    """Of what ``released`` gives, in clips."""
    return 0.0 if question.get("clip") is None else float(question["noise"])


def released(numbers: NDArray[np.float64], question: Mapping[str, Any]) -> NDArray[np.float64]:
    """A device's numbers, cut and noised as the question says."""
    clip = question.get("clip")
    if clip is None:
        return numbers
    cut = np.asarray(numbers * min(1.0, clip / max(float(np.linalg.norm(numbers)), 1e-300)))
    size = question["noise"] * clip
    if not size:
        return cut
    # Of the system's own source: who could guess its state would know the noise.
    draw = random.SystemRandom().gauss
    noise = np.array([draw(0.0, size) for _ in range(cut.size)])
    return np.asarray(cut + noise.reshape(cut.shape))

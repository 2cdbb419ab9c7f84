"""What a device sends where there is a guarantee: cut to a length, with its share of the noise.

Each of K devices adds Gaussian noise whose deviation is ``noise * clip`` over the root of K. On the
sum over devices it is ``noise * clip``, and nobody, the server neither, sees less noise than one
device's. Where only some of the K answer, the sum has less: ``Release.effective``.
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
    """Deviation of the noise on the sum over devices, in clips."""
    least: float = 1.0
    """Share of them that answered, in the round with the fewest."""

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
        return float(self.noise * self.least**0.5)

    def check(self, sent: NDArray[Any], devices: int) -> None:
        """ValueError for numbers that no device can have cut and noised so."""
        if self.clip is None:
            return
        room = self.noise / devices**0.5 * (sent.size**0.5 + 6)
        if float(np.linalg.norm(sent)) > self.clip * (1 + 1e-5 + room):
            raise ValueError("numbers longer than the clip")

    def count(self, present: int, devices: int) -> None:
        """Note how many of so many answered."""
        self.least = min(self.least, present / devices)


def released(numbers: NDArray[np.float64], question: Mapping[str, Any]) -> NDArray[np.float64]:
    """A device's numbers, cut and noised as the question says."""
    clip = question.get("clip")
    if clip is None:
        return numbers
    cut = np.asarray(numbers * min(1.0, clip / max(float(np.linalg.norm(numbers)), 1e-300)))
    size = question["noise"] * clip / question["devices"] ** 0.5
    if not size:
        return cut
    # Of the system's own source: who could guess its state would know the noise.
    draw = random.SystemRandom().gauss
    noise = np.array([draw(0.0, size) for _ in range(cut.size)])
    return np.asarray(cut + noise.reshape(cut.shape))

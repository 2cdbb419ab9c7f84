"""Rounds: whom to ask, whose answers count, and who was late, lost or refused."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import TuningError
from ..schema import Whole, check
from .messages import Answer, Question, size

LEAST_ROWS = 50
LEAST_DEVICES = 5
LEAST_NOISE = 1.0
"""In clips, of a device's own: from 50 rows of SST-2, a guesser ranks true texts at 461 of 1 000,
where chance gives 500."""
MOST_ROWS = 1 << 20


class Work(Protocol):
    """What a fleet computes. Each round its ``question`` goes to every device."""

    @property
    def done(self) -> bool:
        """Whether there is nothing more to ask."""
        ...

    def question(self, device: int) -> Question:
        """For a device, with its ``kind``."""
        ...

    def admit(self, device: int, answer: Answer) -> None:
        """Keep a device's answer to its last question.

        Raises:
            ValueError: it cannot be right; says why.
        """
        ...

    def advance(self, present: Sequence[int]) -> None:
        """Go on from the answers of these devices."""
        ...


@dataclass(frozen=True)
class Round:
    """How a round went. Devices are named by their numbers."""

    number: int
    present: tuple[int, ...]
    """Those whose answers count."""
    joined: tuple[int, ...]
    """Those of them that answered for the first time."""
    absent: tuple[int, ...]
    """Those that were asked and did not answer."""
    refused: Mapping[int, str]
    """Those whose answers were refused, and why. They are not asked again."""
    sent: int
    """Bytes of the largest answer."""

    def __str__(self) -> str:
        told = f"round {self.number}: {len(self.present)} devices, at most {self.sent} bytes each"
        if self.joined and self.number > 1:
            told += f"; joined: {_listed(self.joined)}"
        if self.absent:
            told += f"; no answer: {_listed(self.absent)}"
        for device, reason in self.refused.items():
            told += f"; refused: {device} ({reason})"
        return told


class Fleet:
    """A work's rounds.

    Args:
        identity: of bundle and task (see ``identity``); answers of another are refused.
        least_rows: fewer than so many behind an answer are refused: sums of few tell of each.
        least_devices: a round of fewer ends the work.
    """

    def __init__(
        self,
        identity: str,
        work: Work,
        *,
        least_rows: int = LEAST_ROWS,
        least_devices: int = LEAST_DEVICES,
    ) -> None:
        self.identity, self.work = identity, work
        self.least_rows, self.least_devices = least_rows, least_devices
        self.rounds: list[Round] = []
        self.refused: dict[int, str] = {}
        """All that ever were, and why."""
        self._known: set[int] = set()
        self._asked: tuple[int, ...] = ()

    def ask(self, devices: Iterable[int]) -> dict[int, Question]:
        """Questions of the next round, for those of ``devices`` that were never refused."""
        self._asked = tuple(each for each in devices if each not in self.refused)
        common = {
            "fleet": self.identity,
            "round": len(self.rounds) + 1,
            "devices": len(self._asked),
        }
        return {each: {**self.work.question(each), **common} for each in self._asked}

    def take(self, answers: Mapping[int, Answer]) -> Round:
        """Go on from the answers that came; a device that is missing is asked again next time.

        Raises:
            TuningError: fewer than ``least_devices`` answers count.
        """
        number = len(self.rounds) + 1
        present, refused = [], {}
        for device in self._asked:
            if device not in answers:
                continue
            try:
                self._check(answers[device], number)
                self.work.admit(device, answers[device])
                present.append(device)
            except ValueError as error:
                refused[device] = str(error)
        self.refused |= refused
        found = Round(
            number,
            tuple(present),
            tuple(each for each in present if each not in self._known),
            tuple(each for each in self._asked if each not in answers),
            refused,
            max((size(answers[each]) for each in present), default=0),
        )
        if len(present) < self.least_devices:
            raise TuningError(
                f"{found}: at least {self.least_devices} devices must take part (least-devices)"
            )
        self._known |= set(present)
        self.rounds.append(found)
        self.work.advance(present)
        return found

    def _check(self, answer: Mapping[str, Any], number: int) -> None:
        check(dict(answer), {"fleet": str, "round": int, "rows": Whole(0, MOST_ROWS)})
        if answer["fleet"] != self.identity:
            raise ValueError("of another bundle or task")
        if answer["round"] != number:
            raise ValueError(f"an answer to round {answer['round']}, late")
        if answer["rows"] < self.least_rows:
            raise ValueError(f"{answer['rows']} rows, at least {self.least_rows} must be behind it")


def _listed(devices: Sequence[int]) -> str:
    return ", ".join(map(str, devices))

"""Works about an answer head: the pooled fit, one with noise, and the verdict on either."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..estimators import private_fit
from ..estimators.pooled_fit import DIRECTIONS, PooledFit, Sent, Summary
from ..estimators.private_fit import PrivateFit, Reference
from ..model import Model
from ..scoring.answer_head import AnswerHead, AnswerHeads, describe
from .messages import Answer, Question, packed, unpacked
from .release import Release

ROUNDS = 10
"""Points of the pooled fit, one a round."""
SHARE = 0.5
"""Of the model's own answer (see ``AnswerHead.share``): the mean of what the readout tries."""


class _Head:
    """What the two fits share: the sizes of the head, and how weights become one."""

    def __init__(self, model: Model, share: float) -> None:
        task, width = model.task, model.bundle.hidden_width
        if not task.head_rows or not width:
            raise TuningError(
                "a fleet's fit needs a task of choosing an answer and a program that returns "
                "hidden states"
            )
        self._description = describe(task.head_labels, width)
        self.share, self.rows, self.width = share, task.head_rows, width
        self.answers = task.answers

    def head_of(self, weights: NDArray[np.float32]) -> AnswerHead:
        """The part of values that ``weights`` float32 ``[R, D + 1]`` make."""
        own = np.append(weights.reshape(-1), np.float32(self.share - 1))
        return AnswerHeads().restore(self._description, own)


class PooledHead(_Head):
    """The fit to all rows of the devices present, as if they lay in one place.

    A device that joins late or missed rounds is asked about all points that it did not answer for.
    One that stays away drops out of the sums from then on.

    Args:
        rounds: of which each adds a point.
    """

    def __init__(self, model: Model, *, rounds: int = ROUNDS) -> None:
        super().__init__(model, SHARE)
        self.fit, self.release = PooledFit(self.rows, self.width, self.answers), Release(None)
        self._left = rounds
        self._sent: dict[int, Sent] = {}

    @property
    def done(self) -> bool:
        return self._left == 0

    @property
    def head(self) -> AnswerHead:
        """Of the last point."""
        return self.head_of(self.fit.points[-1])

    def question(self, device: int) -> Question:
        sent = self._sent.get(device)
        # None, where a round before was given up for want of others.
        points = np.stack(self.fit.points)[0 if sent is None else len(sent.losses) :]
        return {
            "kind": "pooled",
            "share": self.share,
            "points": packed(points),
            "summary": sent is None,
        }

    def admit(self, device: int, answer: Answer) -> None:
        known = self._sent.get(device)
        sent = Sent(self._summary(answer)) if known is None else known
        if answer["rows"] != sent.summary.rows:
            raise ValueError(f"{answer['rows']} rows, not {sent.summary.rows} as before")
        count = len(self.fit.points) - len(sent.losses)
        shape = count, max(1, self.rows - 1), self.width + 1
        sent.add(
            unpacked(answer, "losses", "f8", count), unpacked(answer, "gradients", "f4", *shape)
        )
        reason = sent.contradiction(self.fit.points, self.answers // self.rows)
        if reason is not None:
            raise ValueError(reason)
        self._sent[device] = sent

    def _summary(self, answer: Answer) -> Summary:
        nibbles = unpacked(answer, "directions", "u1", DIRECTIONS, -(-self.width // 2))
        pairs = np.stack([nibbles >> 4, nibbles & 15], axis=2).reshape(DIRECTIONS, -1)
        deviation = unpacked(answer, "deviation", "f4", self.width)
        if (deviation < 0).any():
            raise ValueError("a deviation below zero")
        return Summary(
            answer["rows"],
            unpacked(answer, "mean", "f4", self.width),
            deviation,
            pairs[:, : self.width].astype(np.int8) - np.int8(8),
            unpacked(answer, "lengths", "f4", DIRECTIONS),
        )

    def advance(self, present: Sequence[int]) -> None:
        self.fit.advance([self._sent[device] for device in present])
        self._left -= 1


class PrivateHead(_Head):
    """A fit of few steps, each by the mean over devices of their gradients, cut and with noise.

    Whoever sees all results learns of any one device's part no more than an accountant's epsilon
    and delta for ``rounds`` Gaussian releases with noise of ``release.effective``.

    Args:
        reference: hidden states of the server's own rows, without labels, float32 ``[n, D]``: for
            their place and size, which devices then need not tell.
        noise: see ``Release``; 0 adds none.
    """

    def __init__(
        self,
        model: Model,
        reference: NDArray[np.float32],
        *,
        noise: float,
        rounds: int = 1,
        clip: float = private_fit.CLIP,
    ) -> None:
        super().__init__(model, private_fit.SHARE)
        self.fit = PrivateFit(self.rows, self.answers, Reference.of(reference))
        self.rounds, self.release = rounds, Release(clip, noise)
        self._answers: dict[int, NDArray[np.float32]] = {}

    @property
    def done(self) -> bool:
        return self.fit.steps == self.rounds

    @property
    def head(self) -> AnswerHead:
        """As the rounds so far make it."""
        return self.head_of(self.fit.raw_weights)

    def question(self, device: int) -> Question:
        return {
            "kind": "private",
            "share": self.share,
            "weights": packed(self.fit.weights),
            "mean": packed(self.fit.reference.mean),
            "scale": packed(self.fit.reference.scale),
            **self.release.question,
        }

    def admit(self, device: int, answer: Answer) -> None:
        shape = max(1, self.rows - 1), self.width + 1
        gradient = unpacked(answer, "gradient", "f4", *shape)
        self.release.check(gradient)
        self._answers[device] = gradient

    def advance(self, present: Sequence[int]) -> None:
        self.release.count(len(present))
        self.fit.advance(np.mean([self._answers[each] for each in present], axis=0, dtype=float))


class JudgedHead:
    """One round in which each device judges a head on its own held-out rows, and may keep it.

    Of fewer than ``Fleet.least_rows`` held-out rows a device sends nothing.
    """

    def __init__(self, head: AnswerHead) -> None:
        self._own = head.own
        self._counts: dict[int, NDArray[np.float64]] = {}
        self.before = self.after = (0.0, 0.0)
        """Share of right answers and mean loss of the model as exported, and with the head."""
        self.done = False

    def question(self, device: int) -> Question:
        return {"kind": "judge", "own": packed(self._own)}

    def admit(self, device: int, answer: Answer) -> None:
        found = unpacked(answer, "judged", "f8", 4)
        if (found < 0).any() or max(found[0], found[2]) > answer["rows"]:
            raise ValueError("more right answers than rows")
        self._counts[device] = np.append(found, answer["rows"])

    def advance(self, present: Sequence[int]) -> None:
        total = np.sum([self._counts[each] for each in present], axis=0)
        shares = total[:4] / total[4]
        self.before = float(shares[0]), float(shares[1])
        self.after = float(shares[2]), float(shares[3])
        self.done = True

"""Readout: learn the answer from a hidden state, with one forward a batch and no perturbation.

Every forward computes, beside the loss, hidden states in which the answer stands. Weights that read
it off (see ``runtime.scoring.answer_head``) have a convex loss, whose minimum over all examples so
far is found without the program (``ridge_logistic``). The sensitive values stay as they are.

On SmolLM2 and SST-2, one forward of 16 examples teaches more than 16 of ``gauss-newton``, which
measures 17 numbers of an example where this sees 1728. Each example is needed once, so that a run
is one pass over the training data at most.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scoring.answer_head import AnswerHeadShape
from ..tasks import Observation
from .ridge_logistic import Examples, choose_ridge, fit

_GROWTH, _SETTLED = 1.3, 1000
"""The ridge is chosen again when there are so many times as many examples, until it was chosen of
so many: then it hardly matters, and choosing takes longer than a forward."""
MEMORY = 2048
"""Examples that it learns from; older ones are forgotten, so that memory and time have a bound."""
_NO_READOUT = 60000.0
"""How the journal's float16 says that no readout is best: a ridge beyond all others."""


def memory_bytes(shape: AnswerHeadShape, examples: int) -> int:
    """What learning from so many examples takes at its peak: their features in float16, twice while
    a batch joins them, and in float32 as they are, standardised, and in part for the ridge."""
    return 16 * min(examples, MEMORY) * (shape.answers // shape.rows) * shape.width


@dataclass(frozen=True)
class Readout:
    """One probe, which observes the hidden states at the values as they are.

    Its state is ``weights`` float32 ``[R, D + 1]``, ``offset`` float32 ``[n, A]``, ``features``
    float16 ``[n, F, D]`` and ``gold`` int64 ``[n]`` of the last n examples, and ``ridge`` float64
    ``[2]``: the last choice and how many examples it was made of.
    """

    shape: AnswerHeadShape
    batch_size: int
    state: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def probes(self) -> int:
        return 1

    @property
    def scalar_count(self) -> int:
        """The ridge and what each weight moves by; then, of each example, its answer, the scores
        and the features: without these a resumed run could not go on to the same bits."""
        each = 1 + self.shape.answers + self._parts * self.shape.width
        return 1 + self.shape.entries + self.batch_size * each

    def scalars(self, seen: Observation) -> NDArray[np.float16]:
        """The step's numbers from its batch. Not finite if a score or feature is not."""
        scores = seen.scores - seen.scores.max(axis=1, keepdims=True)  # small numbers are exact
        stored = (seen.gold[:, None], scores, seen.features[:, :, :-1].reshape(len(scores), -1))
        with np.errstate(over="ignore", invalid="ignore"):
            batch = np.concatenate(stored, axis=1).astype(np.float16)
        if not np.isfinite(batch).all():
            return np.full(self.scalar_count, np.nan, np.float16)
        known = self._with(batch)
        examples = _examples(known)
        ridge, chosen_at = known["ridge"]
        if _is_due(len(examples.gold), chosen_at):
            ridge = min(choose_ridge(examples, self._weights()), _NO_READOUT)
        target = fit(examples, ridge if ridge < _NO_READOUT else np.inf, self._weights())
        move = (target - self._weights()).astype(np.float16)
        return np.concatenate([[np.float16(ridge)], move.reshape(-1), batch.reshape(-1)])

    def apply(
        self,
        values: NDArray[np.float32],
        scalars: NDArray[np.float16],
        *,
        seed: int,
        step: int,
        lr: float,
    ) -> None:
        """Move the readout's weights, the last of ``values``, and take the examples in."""
        entries = self.shape.entries
        move = np.float32(lr) * scalars[1 : 1 + entries].astype(np.float32)
        values[-entries:] += move
        known = self._with(scalars[1 + entries :].reshape(self.batch_size, -1))
        ridge = float(scalars[0])
        count = len(known["gold"])
        if _is_due(count, known["ridge"][1]):
            known["ridge"] = np.array([ridge, count])
        self.state.update(known, weights=values[-entries:].reshape(self._weights().shape).copy())

    @property
    def _parts(self) -> int:
        """F: features of an example, one for all answers or one for each."""
        return self.shape.answers // self.shape.rows

    def _weights(self) -> NDArray[np.float32]:
        empty = np.zeros((self.shape.rows, self.shape.width + 1), np.float32)
        return self.state.get("weights", empty)

    def _with(self, batch: NDArray[np.float16]) -> dict[str, NDArray[Any]]:
        """The state's examples and those of ``batch``, as journaled."""
        answers, width = self.shape.answers, self.shape.width
        new: dict[str, NDArray[Any]] = {
            "gold": batch[:, 0].astype(np.int64),
            "offset": batch[:, 1 : 1 + answers].astype(np.float32),
            "features": batch[:, 1 + answers :].reshape(len(batch), self._parts, width),
        }
        if "gold" not in self.state:
            return {**new, "ridge": np.zeros(2)}
        known = {
            name: np.concatenate([self.state[name], part])[-MEMORY:] for name, part in new.items()
        }
        return {**known, "ridge": self.state["ridge"]}


def _is_due(examples: int, chosen_at: float) -> bool:
    return chosen_at < _SETTLED and examples >= _GROWTH * chosen_at


def _examples(known: dict[str, NDArray[Any]]) -> Examples:
    features = known["features"].astype(np.float32)
    one = np.ones((*features.shape[:2], 1), np.float32)
    return Examples(known["offset"], np.concatenate([features, one], axis=2), known["gold"])

"""Readout: learn the answer from a hidden state, with one forward a batch and no perturbation.

Every forward computes, beside the loss, hidden states in which the answer stands. Weights that read
it off (see ``scoring.answer_head``) have a convex loss, whose minimum over all examples so far is
found without the program (``ridge_logistic``). Of the model's own answer all, half or nothing stays
beside it, as cross-validation says. The sensitive values stay as they are.

Each example is needed once, so a run is at most one pass over the training data.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..scoring.answer_head import AnswerHeadShape
from ..settings import Settings
from ..tasks import Observation
from .estimator import Facts, Ground, Look, Measured, Shape
from .ridge_logistic import SHARES, Choice, Examples, choose, fit

_GROWTH, _SETTLED = 1.3, 1000
"""Ridge and share are chosen again whenever there are 1.3 times as many examples, until there are
1000: by then they hardly matter, and choosing takes longer than a forward."""
MEMORY = 2048
"""Examples that it learns from; older ones are forgotten, so that memory and time have a bound."""
_LARGEST = 1 << 28
"""Product of the sizes that a journal's header may name: its weights then take 1 GiB at most."""
_NO_READOUT = 60000.0
"""How the journal's float16 says that no readout is best: a ridge beyond all others."""


@dataclass
class Readout:
    """One probe, which observes the hidden states at the values as they are.

    Its state is ``weights`` float32 ``[R * (D + 1) + 1]``, the last for the share; of the last n
    examples ``offset`` float32 ``[n, A]``, ``features`` float16 ``[n, F, D]`` and ``gold`` int64
    ``[n]``; and ``ridge`` float64 ``[2]``: the last choice and how many examples it was made of.
    """

    shape: AnswerHeadShape
    batch_size: int
    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    signs = 0
    words = 0

    @property
    def probes(self) -> int:
        return 1

    @property
    def scalar_count(self) -> int:
        """The ridge and what each weight moves by, the share's too; then, of each example, its
        answer, the scores and the features: without these a resumed run could not go on to the
        same bits."""
        each = 1 + self.shape.answers + self._parts * self.shape.width
        return 1 + self.shape.entries + self.batch_size * each

    @property
    def own_entries(self) -> int:
        """The head's weights."""
        return self.shape.entries

    def memory_bytes(self, examples: int) -> int:
        """Features of the examples in float16, twice while a batch joins them, and in float32 as
        they are, standardised, and in part for the ridge."""
        return 16 * min(examples, MEMORY) * self._parts * self.shape.width

    def measure(
        self, look: Look, values: NDArray[np.float32], *, seed: int, step: int, eps: float
    ) -> Measured:
        """One look at the values as they are; nothing is perturbed."""
        losses, seen = look.observe(values)
        return Measured(losses, self.scalars(seen))

    def scalars(self, seen: Observation) -> NDArray[np.float16]:
        """The step's numbers from its batch. Not finite if a score or feature is not."""
        scores = seen.scores - seen.scores.max(axis=1, keepdims=True)  # small numbers are exact
        stored = (seen.gold[:, None], scores, seen.features[:, :, :-1].reshape(len(scores), -1))
        with np.errstate(over="ignore", invalid="ignore"):
            batch = np.concatenate(stored, axis=1).astype(np.float16)
        if not np.isfinite(batch).all():
            return np.full(self.scalar_count, np.nan, np.float16)
        known = self._with(batch)
        examples, now = _examples(known), self._weights()
        began = now[: len(now) - self.shape.share].reshape(self.shape.rows, -1)
        ridge, chosen_at = known["ridge"]
        share = 1 + float(now[-1]) if self.shape.share else 1.0
        choice = Choice(ridge if ridge < _NO_READOUT else np.inf, share)
        if _is_due(len(examples.gold), chosen_at):
            choice = choose(examples, began, SHARES if self.shape.share else ())
        head = fit(examples.of_share(choice.share), choice.ridge, began)
        kept = np.full(self.shape.share, choice.share - 1, np.float32)
        target = np.concatenate([head.reshape(-1), kept])
        move = (target - now).astype(np.float16)
        ridge = np.float16(min(choice.ridge, _NO_READOUT))
        return np.concatenate([[ridge], move, batch.reshape(-1)])

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
        self.state.update(known, weights=values[-entries:].copy())

    @property
    def _parts(self) -> int:
        """F: features of an example, one for all answers or one for each."""
        return self.shape.answers // self.shape.rows

    def _weights(self) -> NDArray[np.float32]:
        # Snapshots of before hold them by rows.
        return self.state.get("weights", np.zeros(self.shape.entries, np.float32)).reshape(-1)

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


def _whole_batches(most: int, examples: int) -> int:
    """The largest batch up to ``most`` that leaves few examples, at most a sixteenth (or one), to a
    short last batch, which no step sees. A size that it gave is kept, as a resumed run needs."""
    few = max(1, examples // 16)
    return next(size for size in range(min(most, examples), 0, -1) if examples % size <= few)


def _fit(settings: Settings, ground: Ground) -> Settings:
    """One pass over the training examples at most."""
    size = _whole_batches(settings.batch_size, ground.examples)
    steps = min(settings.steps or FACTS.steps, ground.examples // size)
    return replace(settings, steps=steps, batch_size=size)


def _shape(settings: Settings, ground: Ground) -> Shape:
    if not ground.head_rows:
        raise TuningError(
            "estimator readout needs a task of choosing an answer, with the objective "
            "label_words; take another estimator"
        )
    if not ground.hidden_width:
        raise TuningError(
            "estimator readout needs a program that returns hidden states; export the model "
            "again, or take another estimator"
        )
    sizes = {"rows": ground.head_rows, "width": ground.hidden_width, "answers": ground.answers}
    return {**sizes, "share": 1}


def _make(settings: Settings, shape: Shape | None) -> Readout:
    sizes = {} if shape is None else dict(shape)
    if set(sizes) - {"share"} != {"rows", "width", "answers"} or sizes.get("share", 1) != 1:
        raise ValueError(f"readout {sizes}")
    if min(sizes.values()) < 1 or math.prod(sizes.values()) > _LARGEST:
        raise ValueError(f"readout {sizes}")
    if sizes["answers"] % sizes["rows"]:
        raise ValueError(f"readout {sizes}")
    return Readout(AnswerHeadShape(**sizes), settings.batch_size)


FACTS = Facts(
    name="readout",
    summary="the answer from hidden states, one forward a batch; where an answer is to be chosen",
    make=_make,
    forwards=lambda directions: 1,
    directions=0,
    least_directions=0,
    most_directions=0,
    lr=1.0,
    eps=1.0,
    eval_every=10,
    own_rates=True,
    ignores=("lr", "eps", "schedule", "warmup", "directions", "noise", "remember"),
    fixed=("batch_size", "eps"),
    mends_bad_losses=True,
    holds_examples=True,
    suits=lambda ground: ground.head_rows > 0 and ground.hidden_width > 0,
    fit=_fit,
    shape=_shape,
)

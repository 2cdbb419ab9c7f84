"""Readout: learn the answer from a hidden state, with one forward a batch and no perturbation.

Every forward computes, beside the loss, hidden states in which the answer stands. Weights that read
it off (see ``scoring.answer_head``) have a convex loss, whose minimum over all examples so far is
found without the program (``ridge_logistic``). Of the model's own answer all, half or nothing stays
beside it, as cross-validation says. The sensitive values stay as they are.

Each example is needed once, so a run is at most one pass over the training data.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..scoring.answer_head import AnswerHead, describe, observe
from ..scoring.batch_loss import Look
from ..scoring.part import Description, Part
from ..scoring.values import Values
from ..settings import Options, Settings
from ..tasks import Observation
from .estimator import EstimatorSpec, Measured, RunContext, Shape, StepContext
from .ridge_logistic import SHARES, Choice, Examples, choose, fit

_GROWTH, _SETTLED = 1.3, 1000
"""Ridge and share are chosen again whenever there are 1.3 times as many examples, until there are
1000: by then they hardly matter, and choosing takes longer than a forward."""
MEMORY = 2048
"""Examples that it learns from; older ones are forgotten, so that memory and time have a bound."""
STEPS = 1000
"""At most, unless the settings say so."""
_LARGEST = 1 << 28
"""Product of the sizes that a journal's header may name: its weights then take 1 GiB at most."""
_NO_READOUT = 60000.0
"""How the journal's float16 says that no readout is best: a ridge beyond all others."""


@dataclass(frozen=True)
class ReadoutOptions(Options):
    """None: it solves for its step."""


@dataclass
class Readout:
    """One probe, which observes the hidden states at the values as they are.

    Its state is, of the last n examples, ``offset`` float32 ``[n, A]``, ``features`` float16
    ``[n, F, D]`` and ``gold`` int64 ``[n]``; and ``ridge`` float64 ``[2]``: the last choice and how
    many examples it was made of.
    """

    rows: int
    """R of the answer head."""
    width: int
    """D."""
    answers: int
    """A: labels or choices."""
    batch_size: int
    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    signs = 0

    @property
    def probes(self) -> int:
        return 1

    @property
    def scalar_count(self) -> int:
        """The ridge and what each weight moves by, the share's too; then, of each example, its
        answer, the scores and the features: without these a resumed run could not go on to the
        same bits."""
        each = 1 + self.answers + self._parts * self.width
        return 1 + self._entries + self.batch_size * each

    @property
    def _entries(self) -> int:
        """Weights of the head, and its share."""
        return self.rows * (self.width + 1) + 1

    def memory_bytes(self, examples: int) -> int:
        """Features of the examples in float16, twice while a batch joins them, and in float32 as
        they are, standardised, and in part for the ridge."""
        return 16 * min(examples, MEMORY) * self._parts * self.width

    def measure(self, look: Look, values: Values, at: StepContext) -> Measured:
        """One look at the values as they are; nothing is perturbed."""
        assert values.part is not None  # a run began with one
        losses, seen = observe(look, values)
        return Measured(losses, self.scalars(seen, values.part.own))

    def scalars(self, seen: Observation, now: NDArray[np.float32]) -> NDArray[np.float16]:
        """The step's numbers from its batch, with the head's as they are ``now``. Not finite if a
        score or feature is not."""
        scores = seen.scores - seen.scores.max(axis=1, keepdims=True)  # small numbers are exact
        stored = (seen.gold[:, None], scores, seen.features[:, :, :-1].reshape(len(scores), -1))
        with np.errstate(over="ignore", invalid="ignore"):
            batch = np.concatenate(stored, axis=1).astype(np.float16)
        if not np.isfinite(batch).all():
            return np.full(self.scalar_count, np.nan, np.float16)
        known = self._with(batch)
        examples = _examples(known)
        began = now[:-1].reshape(self.rows, -1)
        ridge, chosen_at = known["ridge"]
        choice = Choice(ridge if ridge < _NO_READOUT else np.inf, 1 + float(now[-1]))
        if _is_due(len(examples.gold), chosen_at):
            choice = choose(examples, began, SHARES)
        head = fit(examples.of_share(choice.share), choice.ridge, began)
        target = np.append(head.reshape(-1), np.float32(choice.share - 1))
        move = (target - now).astype(np.float16)
        ridge = np.float16(min(choice.ridge, _NO_READOUT))
        return np.concatenate([[ridge], move, batch.reshape(-1)])

    def apply(self, values: Values, scalars: NDArray[np.float16], at: StepContext) -> None:
        """Move the head's weights, and take the examples in."""
        assert values.part is not None
        entries = self._entries
        values.part.own[:] += np.float32(at.lr) * scalars[1 : 1 + entries].astype(np.float32)
        known = self._with(scalars[1 + entries :].reshape(self.batch_size, -1))
        ridge = float(scalars[0])
        count = len(known["gold"])
        if _is_due(count, known["ridge"][1]):
            known["ridge"] = np.array([ridge, count])
        self.state.update(known)

    @property
    def _parts(self) -> int:
        """F: features of an example, one for all answers or one for each."""
        return self.answers // self.rows

    def _with(self, batch: NDArray[np.float16]) -> dict[str, NDArray[Any]]:
        """The state's examples and those of ``batch``, as journaled."""
        answers, width = self.answers, self.width
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


def _fit(options: ReadoutOptions, settings: Settings, context: RunContext) -> Settings:
    """One pass over the training examples at most."""
    size = _whole_batches(settings.batch_size, context.examples)
    steps = min(settings.steps or STEPS, context.examples // size)
    return replace(settings, steps=steps, batch_size=size)


def _part(options: ReadoutOptions, context: RunContext) -> Description:
    if not context.head_rows:
        raise TuningError(
            "estimator readout needs a task of choosing an answer; take another estimator"
        )
    if not context.hidden_width:
        raise TuningError(
            "estimator readout needs a program that returns hidden states; export the model "
            "again, or take another estimator"
        )
    return describe(context.labels, context.hidden_width)


def _shape(options: ReadoutOptions, context: RunContext) -> Shape:
    return {"answers": context.answers}


def _make(
    options: ReadoutOptions, settings: Settings, shape: Shape | None, part: Part | None
) -> Readout:
    sizes = dict(shape or {})
    if set(sizes) != {"answers"} or not isinstance(part, AnswerHead):
        raise ValueError(f"readout {sizes}")
    answers, rows = sizes["answers"], part.rows
    if answers < 1 or answers * rows * part.width > _LARGEST or answers % rows:
        raise ValueError(f"readout of {answers} answers and {rows} rows of {part.width}")
    return Readout(rows, part.width, answers, settings.batch_size)


SPEC = EstimatorSpec(
    name="readout",
    summary="default to choose an answer: a linear layer on hidden states, solved for, not "
    "searched; one forward a batch",
    options=ReadoutOptions,
    make=_make,
    steps=STEPS,
    eval_every=10,
    fixes_batch_size=True,
    guarded=False,
    mends_bad_losses=True,
    holds_examples=True,
    suits=lambda context: context.head_rows > 0 and context.hidden_width > 0,
    fit=_fit,
    shape=_shape,
    part=_part,
)

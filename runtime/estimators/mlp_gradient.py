"""MLP gradient: the sensitive values by a gradient, with one forward a batch and no perturbation.

Where an answer is scored, the loss's gradient by the last state is known. It is handed down through
the MLPs of these tokens, past attention, and meets what each sensitive value of gate, up and down
multiplies (see ``scoring.block_terms``): one number a value from one forward, where noise gives one
number for all. A step is Adam's (Kingma and Ba, arXiv 1412.6980), on the mean gradient g of the
batch, as float16 holds it:

    m = 0.9 m + 0.1 g
    s = 0.99 s + 0.01 g^2
    value = value - lr (m / (1 - 0.9^n)) / sqrt(s / (1 - 0.99^n))

A task of writing has generic text beside each batch, whose divergence from the untouched model is
added to the loss. Values of other matrices and of lower blocks stay. What attention would hand on
is missing, so a long way at a high rate leads astray (``host_tools/bench/results/depth.md``): the
rate falls to 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..scoring.batch_loss import Look
from ..scoring.block_terms import BlockTerms, Inside
from ..scoring.part import Part, PartKind
from ..scoring.text_head import TextHead
from ..scoring.text_part import KIND, TextHeads, generic_beside
from ..scoring.values import Values
from ..settings import RATE, Schedule, Scheduled, Settings, option
from .estimator import EstimatorSpec, Measured, RunContext, Shape, StepContext

MOMENTUM, SQUARE = 0.9, 0.99
PULL = 3.0
"""Weight of the divergence from the untouched model, as where terms are learned."""
FROM = 2 / 3
"""Values below this depth stay. SST-2, 400 held-out rows after 60 steps: 84.5 % from block 20 of 30
on, 81.5 from block 10: the few values there are and the worse gradient lead astray."""


@dataclass(frozen=True)
class MlpGradientOptions(Scheduled):
    """Of a run that moves the sensitive values along a gradient."""

    lr: float = option(2e-3, f"{RATE}: about what a value moves by in a step.", above=0)
    schedule: Schedule = option(
        "linear", "How the learning rate goes from its peak to the last step."
    )


@dataclass
class MlpGradient:
    """One probe, which observes the blocks at the values as they are.

    Its state is ``mean`` and ``square``, float32 ``[last - first]``: m and s; and ``decay``,
    float64 ``[2]``: the products of 0.9 and of 0.99 over the steps so far.
    """

    block: int
    """The first whose values move."""
    first: int
    last: int
    """The values ``[first, last)``, which are those of the blocks from there on."""
    state: dict[str, NDArray[Any]] = field(default_factory=dict)

    probes = 1
    signs = 0

    @property
    def scalar_count(self) -> int:
        """The gradient by each of these values."""
        return self.last - self.first

    def memory_bytes(self, examples: int) -> int:
        """Its state, the gradient by all values, and four arrays while a step is applied."""
        return 4 * (6 * self.scalar_count + self.last)

    def measure(self, look: Look, values: Values, at: StepContext) -> Measured:
        reached = _reached(look.kinds)
        assert reached is not None  # a run began with them
        (head, terms), sensitive = reached, values.sensitive
        losses = np.empty((1, look.examples))
        states, upon, insides = [], [], []
        for numbers, batch, scores in look.forwards(sensitive, inside=True):
            assert scores.hidden is not None
            losses[:, numbers] = look.task.losses(scores.logp, batch)
            by_logp = look.task.slopes(scores.logp[0], batch)
            states.append(scores.hidden[0, :, : head.width])
            upon.append(head.by_states(states[-1], batch.candidates, by_logp))
            insides.append(scores.inside)
        inside = Inside.of(insides)
        if look.task.writes:
            beside = look, sensitive, head, (), sum(map(len, states))
            generic = generic_beside(*beside, seed=at.seed, step=at.step)
            assert generic.inside is not None
            inside = inside.followed_by(generic.inside)
            states.append(generic.states)
            weight = np.float32(PULL * look.examples / len(generic.words))
            upon.append(weight * head.pull_by_states(generic))
        seen = inside, np.concatenate(states), np.concatenate(upon)
        found = terms.values_gradient(self.block, sensitive, *seen)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = (found[self.first : self.last] / look.examples).astype(np.float16)
        return Measured(losses, mean)

    def apply(self, values: Values, scalars: NDArray[np.float16], at: StepContext) -> None:
        """Additions, products, quotients and roots of float32 one by one, whose bits are the same
        everywhere."""
        gradient = scalars.astype(np.float32)
        if "mean" not in self.state:
            zeros = np.zeros(self.scalar_count, np.float32)
            self.state.update(mean=zeros, square=zeros.copy(), decay=np.ones(2))
        # Products, not powers: pow differs between C libraries.
        decay = self.state["decay"] * np.array([MOMENTUM, SQUARE])
        mean = self.state["mean"] * np.float32(MOMENTUM)
        mean += gradient * np.float32(1 - MOMENTUM)
        square = self.state["square"] * np.float32(SQUARE)
        square += gradient * gradient * np.float32(1 - SQUARE)
        root = np.sqrt(square)
        root[root == 0] = np.inf  # never moved
        step_by = mean / root
        step_by *= np.float32(at.lr * (1 - decay[1]) ** 0.5 / (1 - decay[0]))
        values.sensitive[self.first : self.last] -= step_by
        self.state.update(mean=mean, square=square, decay=decay)


def _reached(kinds: Mapping[str, PartKind]) -> tuple[TextHead, BlockTerms] | None:
    """The head that the gradient begins with and the blocks that it reaches; None without both."""
    kind = kinds.get(KIND)
    if not isinstance(kind, TextHeads) or kind.head.terms is None:
        return None
    return kind.head, kind.head.terms


def _holds(context: RunContext) -> int:
    """Of the blocks and, where more than the answers' words count, of all words."""
    reached = _reached(context.kinds)
    return 0 if reached is None else reached[1].memory_bytes + reached[0].words.memory_bytes


def _fit(options: MlpGradientOptions, settings: Settings, context: RunContext) -> Settings:
    """A batch that the training examples fill."""
    return replace(settings, batch_size=min(settings.batch_size, context.examples))


def _shape(options: MlpGradientOptions, context: RunContext) -> Shape:
    """The values of the upper blocks, which lie behind those of all others."""
    reached, blocks = _reached(context.kinds), context.blocks
    block = 0 if reached is None else max(reached[1].info.first, round(FROM * context.block_count))
    if reached is None or blocks is None or blocks[-1] < block:
        raise TuningError(
            "estimator mlp-gradient needs a program that returns what goes through its upper "
            "blocks, and values there: export with --terms 8, or take another estimator"
        )
    return {"block": block, "first": int(np.searchsorted(blocks, block)), "last": len(blocks)}


def _make(
    options: MlpGradientOptions, settings: Settings, shape: Shape | None, part: Part | None
) -> MlpGradient:
    sizes = {} if shape is None else dict(shape)
    if set(sizes) != {"block", "first", "last"} or not 0 <= sizes["first"] < sizes["last"]:
        raise ValueError(f"values {sizes}")
    return MlpGradient(sizes["block"], sizes["first"], sizes["last"])


SPEC = EstimatorSpec(
    name="mlp-gradient",
    summary="the sensitive values by the loss's gradient through the upper blocks' MLPs",
    options=MlpGradientOptions,
    make=_make,
    steps=None,
    eval_every=25,
    guarded=False,
    holds_examples=True,
    fit=_fit,
    shape=_shape,
    holds=_holds,
)

"""Text head: learn to write like the user, by the output head's own gradient.

All that lies behind the last hidden state needs no backward pass: of a token's loss by what the
head reads the gradient is ``W' (p - y)``, which states and the head's words give (see
``scoring.text_head``, ``scoring.word_table``; rare words are drawn: it is right on average). A step
takes one forward of its batch, the gradient g of the weights M, and of g the signs alone:

    m = 0.9 m + 0.1 sign(g)         momentum
    M = M - lr m / (1 - 0.9^n)      the moving weights, at which gradients are taken
    values = their running mean, each step keeping 0.95 of it, likewise without its bias

(signSGD with momentum, arXiv 1802.04434; the mean in place of a falling rate, so that no end need
be known). Half as many tokens of generic text pull towards the untouched head. Where the bundle has
terms of its upper blocks (option ``terms``), they are learned with it, five times as fast, by the
head's gradient handed down (see ``scoring.block_terms``); the generic text then goes through the
program at each step, since the terms move its states, too. With the option ``remember`` the words
of the batch join a memory behind the weights (see ``scoring.word_memory``).

The journal holds a bit a number and step, 156 kB for SmolLM2, and 3 kB of words. Applying them is
elementwise float32, so that every machine gets the same bits from a journal.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError
from ..scoring.batch_loss import Look
from ..scoring.part import Description, Part
from ..scoring.text_head import Observed
from ..scoring.text_part import (
    KIND,
    PULL_SHARE,
    TextHeads,
    TextPart,
    describe,
    drawn_numbers,
    entries_of,
    generic_beside,
    tokens_of,
)
from ..scoring.values import Values
from ..scoring.word_memory import A_STEP, INDEX_BYTES, WHEN, WORDS, added, of_step, to_bytes
from ..settings import RATE, Scheduled, Settings, option
from .estimator import EstimatorSpec, Measured, RunContext, Shape, StepContext

MOMENTUM, KEPT = 0.9, 0.95
PULL = 12.0
"""Weight of the divergence from the untouched model on generic text. SmolLM2, one sender, after 50
steps: weight 6 gains 2 % more and moves the same part of other text by 1.1 % in place of 0.7 %
(``host_tools/bench/results/text_head.md``)."""
TERM_PULL, TERM_RATE = 3.0, 5.0
"""The pull where terms are learned, and their rate over the weights'."""
LEAST_BATCH, STEPS_A_PASS = 4, 50
"""Few messages come in smaller batches: 200 messages of two people gained a quarter more in
batches of 4 than of 16."""


@dataclass(frozen=True)
class TextHeadOptions(Scheduled):
    """Of a run that learns to write."""

    lr: float = option(2e-4, f"{RATE}: about what a weight moves by in a step.", above=0)
    terms: bool = option(
        True, "Learn terms of the upper blocks, too, where the bundle has them.", fixed=True
    )
    remember: bool = option(True, "Keep words of the rows beside the weights, as a memory.")

    memory = "remember"


@dataclass
class TextHeadEstimator:
    """One probe, which observes the tokens' states at the sensitive values as they are.

    Its state is ``momentum`` and ``moving``, float32 ``[entries]``, and ``decay``, float64 ``[2]``:
    the products of 0.9 and of 0.95 over the steps so far; with a memory also ``WHEN``.
    """

    entries: int
    """Of the weights, O * I, and of the terms behind them."""
    terms: int = 0
    """Of the terms."""
    words: int = 0
    """Words that the memory holds; 0 where there is none."""
    remembers: bool = True
    """Whether words of the batch join it."""
    state: dict[str, NDArray[Any]] = field(default_factory=dict)

    probes = 1
    scalar_count = 0

    @property
    def signs(self) -> int:
        """Those of the gradient; with a memory, in whole bytes, and the words' bytes behind."""
        return 8 * (self._packed + 3 * A_STEP) if self.words else self.entries

    @property
    def _packed(self) -> int:
        """Bytes of the gradient's signs."""
        return -(-self.entries // 8)

    def memory_bytes(self, examples: int) -> int:
        """Its state; the start's, the live and the best weights; three more while a step is
        applied, and the gradient; the words and ``WHEN`` as often, and their index. What a look
        takes stands with the look."""
        return 4 * 9 * self.entries + (4 * 8 + INDEX_BYTES) * self.words

    def measure(self, look: Look, values: Values, at: StepContext) -> Measured:
        """One look at the batch; the gradient is taken at the moving weights."""
        assert isinstance(values.part, TextPart)  # a run began with one
        text, sensitive = values.part.head, values.sensitive
        moving = self.state.get("moving", np.zeros(self.entries, np.float32))
        if self.terms and text.terms is not None:
            terms = text.terms.terms(moving[-self.terms :])
            tokens = tokens_of(look, sensitive, text.width, terms)
            beside = look, sensitive, text, terms, len(tokens.observed.words)
            generic = generic_beside(*beside, seed=at.seed, step=at.step)
        else:
            tokens = tokens_of(look, sensitive, text.width)
            count = round(PULL_SHARE * len(tokens.observed.words))
            numbers = drawn_numbers(count, len(text.frame.states), seed=at.seed, step=at.step)
            generic = Observed(text.frame.states[numbers].astype(np.float32), numbers)
        found = text.gradient(moving, tokens.observed, generic, TERM_PULL if self.terms else PULL)
        losses = tokens.losses(found.logp)
        if not np.isfinite(found.gradient).all():
            return Measured(losses, np.full(1, np.nan, np.float16))
        signs = np.packbits(found.gradient > 0)
        if not self.words:
            return Measured(losses, signs)
        texts = tokens.texts if self.remembers else []
        return Measured(losses, np.concatenate([signs, to_bytes(texts)]))

    def apply(self, values: Values, scalars: NDArray[np.uint8], at: StepContext) -> None:
        """Move the weights and take the words in. Multiplications and additions of float32 one by
        one, whose bits are the same everywhere."""
        assert isinstance(values.part, TextPart)
        own = values.part.weights
        if self.words:
            kept, new = values.part.words, of_step(scalars[self._packed :])
            kept[:] = added(kept, new)
            when = self.state.get(WHEN, np.zeros(self.words, np.int32))
            self.state[WHEN] = added(when, np.full(len(new), at.step + 1, np.int32))
        if "moving" not in self.state:
            zeros = np.zeros(self.entries, np.float32)
            self.state.update(momentum=zeros, moving=zeros.copy(), decay=np.ones(2))
        # Products, not powers: pow differs between C libraries.
        decay = self.state["decay"] * np.array([MOMENTUM, KEPT])
        sign = np.unpackbits(scalars[: self._packed], count=self.entries).astype(np.float32)
        sign *= np.float32(2)
        sign -= np.float32(1)
        sign *= np.float32(1 - MOMENTUM)
        momentum = self.state["momentum"] * np.float32(MOMENTUM)
        momentum += sign
        step_by = momentum * np.float32(at.lr / (1 - decay[0]))
        step_by[self.entries - self.terms :] *= np.float32(TERM_RATE)
        moving = self.state["moving"] - step_by
        part = moving - own
        part *= np.float32((1 - KEPT) / (1 - decay[1]))
        own += part
        self.state.update(momentum=momentum, moving=moving, decay=decay)


def _fit(options: TextHeadOptions, settings: Settings, context: RunContext) -> Settings:
    """Batches of up to the size asked for, smaller where there are few examples. A size that it
    gave is kept, as a resumed run needs."""
    most = max(LEAST_BATCH, context.examples // STEPS_A_PASS)
    size = min(settings.batch_size, most, context.examples)
    return replace(settings, batch_size=size)


def _part(options: TextHeadOptions, context: RunContext) -> Description:
    if not context.writes:
        raise TuningError(
            "estimator text-head needs a task of writing text; take another estimator"
        )
    kind = context.parts.get(KIND)
    if not isinstance(kind, TextHeads):
        raise TuningError(
            "estimator text-head needs a program that takes an adapter, and states of generic "
            "text; export the model again, or take another estimator"
        )
    terms = entries_of(kind.head.terms) if options.terms else 0
    return describe(*kind.head.shape, WORDS if options.remember else 0, terms)


def _make(
    options: TextHeadOptions, settings: Settings, shape: Shape | None, part: Part | None
) -> TextHeadEstimator:
    if not isinstance(part, TextPart):
        raise ValueError("text-head needs a text head")
    moved = len(part.weights)
    return TextHeadEstimator(moved, moved - part.head.entries, len(part.words), options.remember)


SPEC = EstimatorSpec(
    name="text-head",
    summary="default to write: a linear map in front of the output head and low-rank terms of the "
    "blocks below, by the head's own gradient, and a memory of words",
    options=TextHeadOptions,
    make=_make,
    steps=None,
    eval_every=25,
    guarded=False,
    holds_examples=True,
    suits=lambda context: KIND in context.parts,
    fit=_fit,
    part=_part,
)

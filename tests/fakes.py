"""A model small enough for thousands of runs: logistic regression behind the engine's contract."""

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bounds, TextFrame
from seedtune.runtime.engines import Engine, Scores, Terms
from seedtune.runtime.estimators import RunContext
from seedtune.runtime.estimators.noise import add_noise
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.answer_head import AnswerHeads
from seedtune.runtime.scoring.part import PartKind
from seedtune.runtime.scoring.text_head import Observed, TextHead, TokenGradient
from seedtune.runtime.scoring.text_part import TextHeads
from seedtune.runtime.tasks import Batch, Encoded, Observation, Prediction, Task

VOCABULARY = 16
BOUNDS = Bounds(probes=2, rows=16, length=8, positions=16, candidates=2)


class FakeTask(Task):
    """Cross-entropy over two candidates at the end of one row."""

    metric_name = "accuracy"
    higher_is_better = True
    answers = head_rows = 2
    labels = ("right", "left")
    writes = True  # the first candidate, as far as a head for text is concerned

    def __init__(self) -> None:
        self._pad_id = 0

    def encode(self, row: Any, where: str, *, labelled: bool = True) -> Encoded:
        raise NotImplementedError

    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        scores = logp.astype(np.float64)
        if scores.shape[2] == 1:
            return -scores[:, :, 0]
        scores -= np.log(np.exp(scores).sum(axis=2, keepdims=True))
        return -scores[:, np.arange(batch.examples), batch.gold]

    def slopes(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        shares = np.exp(logp.astype(np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        return np.asarray(shares - np.eye(shares.shape[1])[batch.gold])

    def metric(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        right = logp.argmax(axis=1) == batch.gold
        return np.stack([right, np.ones(len(right))], axis=1)

    def predict(self, logp: NDArray[np.float32], batch: Batch) -> list[Prediction]:
        raise NotImplementedError

    def chosen(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.int64]:
        return np.asarray(logp.argmax(axis=1))

    def observe(
        self, logp: NDArray[np.float32], inputs: NDArray[np.float32], batch: Batch
    ) -> Observation:
        return Observation(logp.astype(np.float64), inputs[:, None], batch.gold)


class LostTask(FakeTask):
    """Trains towards the wrong answer from its 31st batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def losses(self, logp: NDArray[np.float32], batch: Batch) -> NDArray[np.float64]:
        losses = super().losses(logp, batch)
        self.batches += len(logp) == 2
        return 1.0 - losses if self.batches > 30 and len(logp) == 2 else losses


WORDS = np.random.default_rng(3).standard_normal((VOCABULARY, 4)).astype(np.float32)


class FakeText(TextHead):
    """A head for text of ``FakeEngine``: its weights are the adapter."""

    memory_bytes = 0
    _states = np.random.default_rng(4).standard_normal((32, 6))
    frame = cast(TextFrame, SimpleNamespace(states=_states, inputs=_states.T))

    def __init__(self) -> None:
        super().__init__((4, 6), VOCABULARY, Mock(), Mock())

    def adapter(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return weights.reshape(self.shape)

    def gradient(
        self, weights: NDArray[np.float32], tokens: Observed, generic: Observed, pull: float
    ) -> TokenGradient:
        both = np.concatenate([tokens.states, generic.states])
        logits = both @ weights.reshape(self.shape).T @ WORDS.T
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        residual, count = p @ WORDS, len(tokens.words)
        residual[:count] -= WORDS[tokens.words]
        residual[count:] -= WORDS.mean(axis=0)
        residual[count:] *= np.float32(pull * count / max(1, len(generic.words)))
        # Small: no loss of this kind must look like a jump beside those of the task's own.
        logp = np.log(p[np.arange(count), tokens.words]).astype(np.float64) / 1000
        gradient = (residual.T @ both).reshape(-1) / np.float32(count)
        return TokenGradient(gradient, logp)


class FakeEngine(Engine):
    """``score`` of a linear model: the logit of a candidate is ``values @ feature``; its hidden
    states are that token's, the same whatever the values."""

    hidden_width = 6

    @property
    def adapter_shape(self) -> tuple[int, int] | None:
        return (4, 6) if self.hidden_width else None

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self._hidden = np.random.default_rng(2).standard_normal((VOCABULARY, 6)).astype(np.float32)
        rng = np.random.default_rng(1)
        shape = (VOCABULARY, VOCABULARY, entries)
        self._features = rng.standard_normal(shape).astype(np.float32) / np.float32(entries**0.5)
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        self.calls.append((batch.tokens.shape, len(values)))
        last = batch.tokens.reshape(-1)[batch.positions]
        logits = np.einsum("nve,pe->pnv", self._features[last], values)
        if adapter is not None:
            logits += self._hidden[last] @ adapter.T @ WORDS.T
        logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
        logp = np.take_along_axis(logits, batch.candidates[None], axis=2)
        hidden = np.stack([self._hidden[last]] * len(values)) if self.hidden_width else None
        return Scores(logp, hidden)


def fake_examples(count: int, *, seed: int = 0) -> list[Encoded]:
    """Examples whose answer depends on the last token alone."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = rng.integers(0, VOCABULARY, size=rng.integers(2, 8))
        gold = int(tokens[-1] % 2)
        candidates = np.array([[3, 5]], dtype=np.int64)
        end = np.array([[0, len(tokens) - 1]])
        found.append(Encoded(tokens[None], end, candidates, gold))
    return found


def noise_vector(count: int, *, seed: int, step: int, probe: int = 0) -> NDArray[np.float32]:
    """The noise itself, float32 ``[count]``, which the loop never needs."""
    out = np.zeros(count, dtype=np.float32)
    add_noise(out, 1.0, seed=seed, step=step, probe=probe)
    return out


def fake_start(entries: int, *, seed: int = 0) -> Start:
    """Starting values and the identity of a bundle that does not exist."""
    values = np.random.default_rng(seed).standard_normal(entries).astype(np.float16)
    return Start(values.astype(np.float32), "b" * 64, BOUNDS, kinds=fake_kinds())


def fake_kinds() -> dict[str, PartKind]:
    """Of parts, all that there are."""
    return {"answer-head": AnswerHeads(), "text-adapter": TextHeads(FakeText())}


def fake_context(engine: Any, task: Any, examples: int) -> RunContext:
    """What a run of that engine, task and so many examples has to go by."""
    return RunContext(
        answers=task.answers,
        head_rows=task.head_rows,
        hidden_width=engine.hidden_width,
        examples=examples,
        entries=engine.entries,
        writes=task.writes,
        labels=task.head_labels,
        parts={name: kind for name, kind in fake_kinds().items() if kind.fits(task, engine)},
    )

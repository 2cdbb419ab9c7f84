"""A named task on the float32 model in PyTorch: the same prompts, rows and losses as on the device,
and what scores them there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from seedtune.runtime.bundle import DEFAULT_BOUNDS, Bounds
from seedtune.runtime.engines import Engine, Scores, Terms
from seedtune.runtime.scoring.evaluation import Evaluation, evaluate
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Batch, Encoded, Task
from seedtune.runtime.tuning.batches import batch_indices
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from ...data.calibration import load_calibration
from ...data.named_tasks import TaskData
from ..measuring.runs import encode, perplexity, text_batches

Places = dict[str, NDArray[np.int64]]
"""Flat indices of weights by the name of their linear layer."""


class FloatEngine(Engine):
    """``Engine`` over a transformers causal model as it stands, in the model's own dtype.

    Only the hidden states that are asked for go through the head. Rows are padded on the right, and
    attention is causal, so that no mask is needed.

    Args:
        model: its weights are overwritten at ``places`` by every call.
        places: where ``values`` stand in the model, in this order; without it, K is 0 and the
            model is scored as it is.
    """

    hidden_width = 0

    def __init__(self, model: Any, places: Places | None = None) -> None:
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        self._places = [
            (model.get_submodule(name).weight.detach().view(-1), torch.tensor(flat))
            for name, flat in (places or {}).items()
        ]
        self.entries = sum(len(flat) for _, flat in self._places)

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 ``[K]``, a copy of the model's weights at ``places``."""
        parts = [weight[flat].numpy() for weight, flat in self._places]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        """As ``Engine.score``, without an adapter or terms; one forward a row of ``values``."""
        assert adapter is None and not terms and not inside
        tokens, positions, candidates = map(
            torch.from_numpy, (batch.tokens, batch.positions, batch.candidates)
        )
        logp = []
        with torch.inference_mode():
            for row in values:
                self.put(row)
                logp.append(self.log_probabilities(tokens, positions, candidates).numpy())
        return Scores(np.stack(logp), None)

    def log_probabilities(
        self, tokens: torch.Tensor, positions: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        """``[N, C]`` under the weights as they are; may be differentiated."""
        hidden = self._body(tokens, use_cache=False).last_hidden_state.flatten(0, 1)
        return torch.log_softmax(self._head(hidden[positions]), dim=-1).gather(1, candidates)

    def close(self) -> None:
        """The model is the caller's."""

    def put(self, row: NDArray[np.float32]) -> None:
        """Set the model's weights at ``places`` to ``row`` (float32 ``[K]``)."""
        first = 0
        for weight, flat in self._places:
            weight[flat] = torch.from_numpy(row[first : first + len(flat)])
            first += len(flat)


@dataclass
class FloatTask:
    """Model, task and encoded examples of one cell of the table."""

    model: Any
    """A transformers causal model in float32."""
    tokenizer: Tokenizer
    spec: dict[str, Any]
    task: Task
    train: list[Encoded]
    test: list[Encoded]
    bounds: Bounds
    generic_text: NDArray[np.int64] | None
    """For a completion task: int64 ``[n, length]``, text that has nothing to do with it."""

    @classmethod
    def of(cls, model: str, data: TaskData, settings: dict[str, Any]) -> FloatTask:
        """Load ``model`` and encode ``data``; texts over ``settings["length"]`` are cut."""
        from seedtune.export.model.load_model import load_causal_lm

        loaded = load_causal_lm(model)
        bounds = replace(DEFAULT_BOUNDS, rows=settings["batch_size"], length=settings["length"])
        tokenizer = Tokenizer.from_str(loaded.tokenizer_json.decode())
        pad = loaded.tokenizer.pad_token_id or 0
        task, train, test = encode(data, tokenizer, bounds, pad, settings["test_rows"])
        text = None
        if task.metric_name == "perplexity":
            text = load_calibration(loaded.tokenizer).held_out
        return cls(loaded.model, tokenizer, data.spec, task, train, test, bounds, text)

    def batch(self, seed: int, step: int, size: int) -> list[Encoded]:
        """The examples of a step, as the tuner draws them."""
        lengths = np.array([example.length for example in self.train])
        labels = np.array([example.gold for example in self.train])
        chosen = batch_indices(step, seed=seed, lengths=lengths, batch_size=size, labels=labels)
        return [self.train[index] for index in chosen]

    def evaluate(self, engine: FloatEngine) -> Evaluation:
        """Loss and metric on the test rows under the model's weights as they are."""
        none = Values(np.zeros(0, np.float32))
        return evaluate(engine, self.task, self.test, none, self.bounds)

    def generic_perplexity(self) -> float | None:
        """Perplexity of ``generic_text`` under the model's weights as they are, if there is any."""
        if self.generic_text is None:
            return None
        return self.perplexity(text_batches(self.generic_text, DEFAULT_BOUNDS))

    def perplexity(self, batches: Iterable[Batch]) -> float:
        """The same of batches."""
        engine, none = FloatEngine(self.model), np.zeros((1, 0), np.float32)
        return perplexity(lambda batch: engine.score(batch, none).logp, batches)


def point(forwards: int, found: Evaluation) -> dict[str, Any]:
    """One point of a curve, in the form of ``runs.tune``."""
    return {"forwards": forwards, "loss": found.loss, "accuracy": found.metric}


def task_losses(task: Task, logp: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What ``task.losses`` computes for one probe.

    Args:
        logp: log-probabilities ``[N, C]`` of the batch's candidates.

    Returns:
        ``[examples]``.
    """
    rows = torch.from_numpy(batch.row_of)
    sums = torch.zeros(len(batch.tokens), logp.shape[1]).index_add(0, rows, logp)
    means = sums / torch.bincount(rows, minlength=len(sums))[:, None]
    if not task.answers:
        return -means[:, 0]
    # An answer has a column of its example's one row, or a row of its own.
    scores = means.view(batch.examples, task.answers)
    return cross_entropy(scores, torch.from_numpy(batch.gold), reduction="none")


def random_tokens(rows: int, length: int, vocabulary: int) -> torch.Tensor:
    """The batch of a timed step, int64 ``[rows, length]``: all rows equally long."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (rows, length)))


def last_token_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The loss of a transformers causal model, by the last position of each row alone: no contender
    of ``bench device`` skips the output head's other positions less than another."""
    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, -1]
    return -torch.log_softmax(model.lm_head(hidden), dim=-1)[:, 1].mean()

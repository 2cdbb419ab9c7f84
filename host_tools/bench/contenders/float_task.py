"""A named task on the float32 model: the same prompts, rows and losses as on the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import DEFAULT_BOUNDS, Bounds
from seedtune.runtime.scoring.evaluation import Evaluation, evaluate
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import Batch, Encoded, Task
from seedtune.runtime.tuning.batches import batch_indices
from tokenizers import Tokenizer

from ...data.calibration import load_calibration
from ...data.named_tasks import TaskData
from ..measuring.perplexity import perplexity, text_batches
from ..measuring.tuning_run import encode
from .float_engine import FloatEngine


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
    """One point of a curve, in the form of ``tuning_run.tune``."""
    return {"forwards": forwards, "loss": found.loss, "accuracy": found.metric}

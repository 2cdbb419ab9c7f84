"""``seedtune bench padding``: what batches of like length save over padding to the bound.

The same training examples of SST-2, all rows padded to the program's length bound, batches as drawn
at random and padded to their longest row, and batches as the loop makes them: drawn from windows
of like length and cut into passes by length. Ratios are medians within a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.engines import open_engine
from seedtune.runtime.scoring.batch_loss import BatchLoss
from seedtune.runtime.tasks import Encoded, task_from_spec
from seedtune.runtime.tuning.batches import batch_indices

from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..prepare.prepare import prepare
from .results_files import RESULTS, write_figures
from .timing import in_turns

BATCHES, BATCH = 6, 16


def bench_padding(*, turns: int = 5, results: Path = RESULTS) -> dict[str, Any]:
    """Seconds a batch and token places a token of text, by way of batching.

    Returns:
        For ``bound``, ``random`` and ``by_length``: ``seconds``, ``places_per_token`` (padding
        included) and ``token_time_over_by_length``, the time for a token of text.
    """
    data = load_task("sst2")
    bundle = prepare(str(fetch("smollm2-135m"))).bundle
    task = task_from_spec(
        data.spec, bundle.tokenizer(), bundle.bounds, bundle.pad_id, on_long="truncate"
    )
    examples = [task.encode(row, f"row {n}") for n, row in enumerate(data.train, 1)]
    lengths = np.array([example.length for example in examples])
    drawn = np.random.default_rng(0).permutation(len(examples))[: BATCHES * BATCH]
    loose = [[examples[n] for n in part] for part in np.split(drawn, BATCHES)]
    batches: dict[str, list[list[Encoded]]] = {
        "by_length": [
            [examples[n] for n in batch_indices(step, seed=0, lengths=lengths, batch_size=BATCH)]
            for step in range(BATCHES)
        ],
        "random": loose,
        "bound": [[_padded(each, bundle.bounds.length) for each in part] for part in loose],
    }
    engine = _Counting(open_engine(bundle))
    batch_loss = BatchLoss(engine, task, bundle.bounds)
    values = np.repeat(bundle.values.astype(np.float32)[None], 2, axis=0)

    def run(name: str) -> Callable[[], None]:
        def all_batches() -> None:
            for batch in batches[name]:
                batch_loss(batch, values)

        return all_batches

    real = {"by_length": _tokens(batches["by_length"]), "random": _tokens(loose)}
    real["bound"] = real["random"]
    places = {}
    for name in batches:
        engine.places = 0
        run(name)()
        places[name] = engine.places / real[name]
    seconds, ratios = in_turns({name: run(name) for name in batches}, turns)
    return write_figures(
        "padding",
        {
            name: {
                "seconds": seconds[name] / BATCHES,
                "token_time_over_by_length": ratios[name] * real["by_length"] / real[name],
                "places_per_token": places[name],
            }
            for name in batches
        },
        results,
    )


def _tokens(batches: Sequence[Sequence[Encoded]]) -> int:
    return sum(example.length for batch in batches for example in batch)


def _padded(example: Encoded, length: int) -> Encoded:
    tokens = np.zeros((1, length), np.int64)
    tokens[:, : example.length] = example.tokens
    return replace(example, tokens=tokens)


class _Counting:
    """An engine that counts the token places of its passes, a probe."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.places = 0

    def score(self, tokens: NDArray[np.int64], *rest: Any) -> NDArray[np.float32]:
        self.places += tokens.size
        scores: NDArray[np.float32] = self._engine.score(tokens, *rest)
        return scores

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
from seedtune.runtime.engines import Engine, Scores, open_engine
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.tasks import Batch, Encoded, encode_rows, task_for
from seedtune.runtime.tuning.batches import batch_indices

from ..data.fetch import fetch
from ..data.named_tasks import load_task
from ..prepare.prepare import prepare
from .measuring.results_files import RESULTS, write_figures
from .measuring.timing import in_turns

BATCHES, BATCH = 6, 16


def bench_padding(*, turns: int = 5, results: Path = RESULTS) -> dict[str, Any]:
    """Seconds a batch and token places a token of text, by way of batching.

    Returns:
        For ``bound``, ``random`` and ``by_length``: ``seconds``, ``places_per_token`` (padding
        included) and ``token_time_over_by_length``, the time for a token of text.
    """
    data = load_task("sst2")
    bundle = prepare(str(fetch("smollm2-135m"))).bundle
    task = task_for(bundle, data.spec, on_long="truncate")
    examples = encode_rows(task, data.train)
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
    values = np.repeat(bundle.values.astype(np.float32)[None], 2, axis=0)

    def run(name: str) -> Callable[[], None]:
        def all_batches() -> None:
            for batch in batches[name]:
                Look(engine, task, bundle.bounds, batch).losses(values)

        return all_batches

    real = {"by_length": _tokens(batches["by_length"]), "random": _tokens(loose)}
    real["bound"] = real["random"]
    places = {}
    for name in batches:
        engine.places = 0
        run(name)()
        places[name] = engine.places / real[name]
    seconds, ratios = in_turns({name: run(name) for name in batches}, turns)
    engine.close()
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


class _Counting(Engine):
    """An engine that counts the token places of its passes, a probe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.entries, self.hidden_width = engine.entries, engine.hidden_width
        self.adapter_shape = engine.adapter_shape
        self.places = 0

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
    ) -> Scores:
        self.places += batch.tokens.size
        return self._engine.score(batch, values, adapter)

    def close(self) -> None:
        self._engine.close()

"""An engine as someone would add one: this module, and a line in ``ENGINES``."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bundle, Program
from seedtune.runtime.engines import Engine, Scores, Terms
from seedtune.runtime.engines.contract import check_request
from seedtune.runtime.errors import EngineError
from seedtune.runtime.tasks import Batch

FORMAT = "toy"
PROCESS_BYTES = 10**6
DEVICES = ()
PROGRAM = Program(FORMAT, ("toy.json",), "float64", {"score": {}})
FILES = {"toy.json": b'{"slope": 0.5}'}


def unavailable() -> str | None:
    return None


def can_change_threads() -> bool:
    return True


def open(
    bundle: Bundle, program: Program, threads: int | None, memory_limit: int | None
) -> "ToyEngine":
    with bundle.checked(program.files[0]) as file:
        return ToyEngine(bundle, json.loads(file.read_bytes())["slope"], threads)


class ToyEngine(Engine):
    """The candidates' logits follow from the row's tokens and two of the values."""

    live = 0
    """How many are open."""

    def __init__(self, bundle: Bundle, slope: float, threads: int | None) -> None:
        self.entries, self.hidden_width = bundle.K, bundle.hidden_width
        self.adapter_shape = bundle.adapter_shape
        self.threads = threads
        self._bounds, self._slope = bundle.bounds, slope
        self._closed = False
        ToyEngine.live += 1

    def close(self) -> None:
        ToyEngine.live -= not self._closed
        self._closed = True

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        if self._closed:
            raise EngineError("the program is closed")
        check_request(self._bounds, batch, values, self.entries, adapter, self.adapter_shape)
        sums = batch.tokens.sum(axis=1)[batch.row_of].astype(np.float64)
        first = self._slope * values[:, :1] * np.cos(sums)[None] + values[:, 1:2]
        logits: Any = np.arange(batch.candidates.shape[1]) * first[..., None]
        logp = (logits - np.logaddexp.reduce(logits, axis=2)[..., None] - 0.5).astype(np.float32)
        if not self.hidden_width:
            return Scores(logp, None)
        hidden = np.cos(sums[:, None] * np.arange(1, self.hidden_width + 1)).astype(np.float32)
        return Scores(logp, np.stack([hidden] * len(values)))

"""What forwards gave, for examples that are scored again while the sensitive values stand still.

An answer head's weights move, the program's part of its scores does not: held-out rows that are
evaluated every few steps need one forward each for a whole run, and the head's product after that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..tasks import Batch, Encoded
from .answer_head import add_head, score_with_inputs

MOST_BYTES = 8 << 20
"""Of hidden states that are kept, at most: 1 200 rows of SmolLM2. Passes beyond are run again."""


def known_bytes(engine: Engine, examples: Sequence[Encoded]) -> int:
    """What ``KnownForwards`` keeps of ``examples``, about."""
    positions = sum(len(each.positions) for each in examples)
    return min(MOST_BYTES, 4 * positions * (engine.hidden_width + 1))


class _Forward(NamedTuple):
    logp: NDArray[np.float32]
    inputs: NDArray[np.float32]


class KnownForwards:
    """Forwards of an engine that returns hidden states, by what was in the batch."""

    def __init__(self, engine: Engine, most_bytes: int = MOST_BYTES) -> None:
        self._engine, self._most = engine, most_bytes
        self._values = np.empty(0, np.float32)
        self._known: dict[bytes, _Forward] = {}
        self._bytes = 0
        self.calls = 0
        """Calls of the program so far."""

    def score(self, batch: Batch, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-probabilities ``[1, N, C]``, as of ``score_batch``.

        Args:
            row: float32 ``[K]``, or with the weights of an answer head behind them. Other
                sensitive values than the last call's forget all of what was known.
        """
        own, head = row[: self._engine.entries], row[self._engine.entries :]
        if not np.array_equal(own, self._values):
            self._values, self._bytes = own.copy(), 0
            self._known.clear()
        key = (
            b"".join(each.tobytes() for each in (batch.tokens, batch.positions, batch.candidates))
            + repr((batch.tokens.shape, batch.candidates.shape)).encode()
        )
        found = self._known.get(key)
        if found is None:
            self.calls += 1
            found = _Forward(*score_with_inputs(self._engine, batch, own[None]))
            size = found.logp.nbytes + found.inputs.nbytes + len(key)
            if self._bytes + size <= self._most:
                self._known[key] = found
                self._bytes += size
        return add_head(found.logp, found.inputs, head[None]) if len(head) else found.logp

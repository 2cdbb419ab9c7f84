"""What forwards gave, for examples that are scored again while the sensitive values stand still.

Where only a part moves, and enters no program, forwards do not change: held-out rows that are
evaluated every few steps need one each for a whole run.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, Scores
from ..tasks import Batch, Encoded
from .values import Values

MOST_BYTES = 8 << 20
"""Of hidden states that are kept, at most: 1 200 rows of SmolLM2. Passes beyond are run again."""


def known_bytes(engine: Engine, examples: Sequence[Encoded]) -> int:
    """What ``KnownForwards`` keeps of ``examples``, about."""
    positions = sum(len(each.positions) for each in examples)
    return min(MOST_BYTES, 4 * positions * (engine.hidden_width + 1))


class KnownForwards:
    """Forwards of an engine, by what was in the batch."""

    def __init__(self, engine: Engine, most_bytes: int = MOST_BYTES) -> None:
        self._engine, self._most = engine, most_bytes
        self._values = np.empty(0, np.float32)
        self._known: dict[bytes, Scores] = {}
        self._bytes = 0
        self.calls = 0
        """Calls of the program so far."""
        self.complete = True
        """Whether all that was scored since the values last changed is known."""

    def score(self, batch: Batch, values: Values) -> NDArray[np.float32]:
        """Log-probabilities ``[1, N, C]``, as of ``Values.score``.

        Other sensitive values than the last call's forget all of what was known. Forwards that a
        part has a share in are not kept.
        """
        if values.part is not None and values.part.enters_program:
            self.calls += 1
            return values.score(self._engine, batch)
        scores = self._forward(batch, values.sensitive)
        return scores.logp if values.part is None else values.part.changed(scores, batch)

    def _forward(self, batch: Batch, values: NDArray[np.float32]) -> Scores:
        if not np.array_equal(values, self._values):
            self._values, self._bytes, self.complete = values.copy(), 0, True
            self._known.clear()
        key = (
            b"".join(
                each.tobytes()
                for each in (batch.prefix, batch.tokens, batch.positions, batch.candidates)
            )
            + repr((batch.tokens.shape, batch.candidates.shape)).encode()
        )
        found = self._known.get(key)
        if found is None:
            self.calls += 1
            found = self._engine.score(batch, values[None])
            size = found.logp.nbytes + len(key)
            size += 0 if found.hidden is None else found.hidden.nbytes
            fits = self._bytes + size <= self._most
            self.complete &= fits
            if fits:
                self._known[key] = found
                self._bytes += size
        return found

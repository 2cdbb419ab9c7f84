"""What a run tunes, the sensitive values and, beside them, a part of the estimator's own; and what
forwards under them gave, where they are asked for again."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, Scores
from ..errors import TuningError
from ..tasks import Batch, Encoded, Task
from .part import Part


@dataclass(frozen=True, eq=False)
class Values:
    """An estimator moves both in place; ``copy`` keeps a state."""

    sensitive: NDArray[np.float32]
    """float32 ``[K]``."""
    part: Part | None = None

    def __repr__(self) -> str:
        part = "no part" if self.part is None else f"a part of kind {self.part.description['kind']}"
        return f"<{len(self.sensitive)} values, {part}>"

    @property
    def entries(self) -> int:
        """Numbers of both."""
        return len(self.sensitive) + (0 if self.part is None else len(self.part.own))

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of both, as little-endian float32 bytes: what ``verify`` and friends
        print."""
        digest = hashlib.sha256(np.ascontiguousarray(self.sensitive, dtype="<f4").data)
        if self.part is not None:
            digest.update(np.ascontiguousarray(self.part.own, dtype="<f4").data)
        return digest.hexdigest()

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the program takes beside the sensitive values (see ``Part.inputs``)."""
        return {} if self.part is None else self.part.inputs

    @property
    def keeps_words(self) -> bool:
        """Whether the part keeps words of the texts as they are."""
        return len(self.words) > 0

    @property
    def words(self) -> NDArray[np.float32]:
        """float32 ``[N]``, a view: the words that the part keeps (see ``Part.words``)."""
        return self.sensitive[:0] if self.part is None else self.part.words

    def copy(self) -> "Values":
        """Other arrays with equal numbers."""
        return Values(self.sensitive.copy(), None if self.part is None else self.part.copy())

    def without_words(self) -> "Values":
        """A copy with zeros for the words that the part keeps."""
        found = self.copy()
        found.words[:] = 0
        return found

    def for_task(self, task: Task, engine: Engine) -> "Values":
        """These, as they score ``task`` with ``engine``.

        Raises:
            TuningError: they are of another bundle, or their part is for another task.
        """
        if len(self.sensitive) != engine.entries:
            raise TuningError(
                f"{len(self.sensitive)} values are not the {engine.entries} of this program: give "
                "the bundle that they were tuned with"
            )
        if self.part is None:
            return self
        return Values(self.sensitive, self.part.for_task(task, engine))

    def score(self, engine: Engine, batch: Batch) -> NDArray[np.float32]:
        """Log-probabilities ``[1, N, C]`` of a batch, with the part's share."""
        scores = engine.score(batch, self.sensitive[None], **self.inputs)
        return scores.logp if self.part is None else self.part.changed(scores, batch)


MOST_BYTES = 8 << 20
"""Of hidden states that are kept, at most: 1 200 rows of SmolLM2. Passes beyond are run again."""


def known_bytes(engine: Engine, examples: Sequence[Encoded]) -> int:
    """What ``KnownForwards`` keeps of ``examples``, about."""
    positions = sum(len(each.positions) for each in examples)
    return min(MOST_BYTES, 4 * positions * (engine.hidden_width + 1))


class KnownForwards:
    """Forwards of an engine, by what was in the batch, for examples that are scored again while the
    sensitive values stand still.

    Where only a part moves, and enters no program, forwards do not change: held-out rows that are
    evaluated every few steps need one each for a whole run.
    """

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

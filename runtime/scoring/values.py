"""What a run tunes: the sensitive values and, beside them, a part of the estimator's own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..errors import TuningError
from ..tasks import Batch, Task
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

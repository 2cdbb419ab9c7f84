"""A part: what a run tunes beside the sensitive values, of its estimator's own.

Scores, text, files, hashes, forgetting and sharing ask the part. A new kind is a file with these
two and a line in ``parts.KINDS``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine, Scores
from ..tasks import Batch, Task

Description = Mapping[str, Any]
"""Plain JSON: the part's ``kind`` and what else makes an equal one of zeros, such as sizes and the
names of rows. Journals' headers and values files keep it."""


class Part(ABC):
    """Numbers, and what they change. An estimator moves them in place."""

    own: NDArray[np.float32]
    """float32 ``[n]``: all of them, as they are hashed and written. Zeros change nothing."""
    enters_program: ClassVar[bool] = False
    """Whether forwards change with it, so that there are ``inputs``."""
    writes: ClassVar[bool] = False
    """Whether it has a part in text that is written."""

    @property
    @abstractmethod
    def description(self) -> Description:
        """What ``PartKind.restore`` needs beside the numbers."""

    @abstractmethod
    def copy(self) -> Self:
        """Another one with equal numbers."""

    @abstractmethod
    def for_task(self, task: Task, engine: Engine) -> Self:
        """Itself or, where the task names its answers in another order, one that follows it.

        Raises:
            TuningError: it has no part in scores of this task or this program.
        """

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the program takes beside the sensitive values, by the names that ``Engine.score``
        and ``Engine.text`` have for it; nothing where forwards stay as they are."""
        return {}

    @abstractmethod
    def changed(self, scores: Scores, batch: Batch) -> NDArray[np.float32]:
        """Log-probabilities ``[P, N, C]`` with the part's share, from what a forward with
        ``inputs`` gave."""

    def mixed_next(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the next token, float32 ``[V]``, with the part's share behind ``tokens``, from
        what the program gave with ``inputs``."""
        return logits

    @property
    def words(self) -> NDArray[np.float32]:
        """float32 ``[N]``, a view: those of its numbers that keep words of the texts as they are
        (see ``word_memory``); ``[0]`` where it keeps none."""
        return self.own[:0]

    @property
    def memory_bytes(self) -> int:
        """What it holds while it learns or scores, its numbers apart."""
        return 0


class PartKind(Protocol):
    """A kind of part, on one bundle."""

    def fits(self, task: Task, engine: Engine) -> bool:
        """Whether a part of this kind can be learned there."""
        ...

    def restore(self, description: Description, own: NDArray[np.float32] | None = None) -> Part:
        """The part that was so described.

        Args:
            own: its numbers; None for zeros.

        Raises:
            ValueError: the description makes no sense, or is of other numbers.
        """
        ...

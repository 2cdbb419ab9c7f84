"""What the engines over ExecuTorch share: a program's methods as ``score`` and ``text``."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Generation
from ..bundle.program import BEHIND, COLUMNS, GENERATE, METHOD
from ..errors import EngineError
from ..tasks import Batch
from .contract import Engine, Scores, Terms, check_adapter, check_array, check_terms
from .read_prefix import ReadPrefix
from .text import Text


class ExecutorchEngine(Engine):
    """An open program; an engine says how its methods are loaded and run."""

    _shown: Path
    """Its name in errors."""
    _bounds: Bounds
    _generation: Generation | None
    """What its ``generate`` takes, if it has one."""
    _vocabulary: int
    """Tokens that it tells apart."""

    def __init__(self) -> None:
        self._prefix: ReadPrefix[NDArray[np.float32]] = ReadPrefix()

    @abstractmethod
    def _load(self, method: str) -> None:
        """Make a method ready to run, where it is not.

        Raises:
            EngineError: the program refuses it, or is closed.
        """

    @abstractmethod
    def _run(
        self, method: str, inputs: list[NDArray[np.generic]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        """The first results of a loaded method, which have these shapes.

        Raises:
            EngineError: the program fails, returns something else, or is closed.
        """

    def _check_writing(self, generation: Generation) -> None:
        """Compare ``generate`` with what the bundle says of it, where the program tells.

        Raises:
            EngineError: it takes or returns other sizes.
        """

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        """See ``Engine``."""
        inputs = self._inputs(self._bounds, batch, values, adapter, terms)
        shapes: list[tuple[int, ...]] = [(len(values), *batch.candidates.shape)]
        if self.hidden_width:
            shapes.append((len(values), len(batch.positions), self.hidden_width))
        if inside:
            shapes += self._inside_shapes(len(values), len(batch.positions))
        method = METHOD
        if len(batch.prefix):
            method = BEHIND
            inputs += self._prefix.blocks(
                batch.prefix, (values, *terms), lambda: self._read(batch.prefix, values, terms)
            )
        logp, *more = self._run(method, inputs, shapes)
        return Scores(logp, more[0] if more else None, tuple(more[1:]))

    def _read(
        self, tokens: NDArray[np.int64], values: NDArray[np.float32], terms: Terms
    ) -> list[NDArray[np.float32]]:
        """The blocks of a prefix, written as a text under each row of ``values``."""
        self._load(BEHIND)
        texts = [self.text(row, terms=terms) for row in values]
        for each in texts:
            each.bound = len(tokens)  # the cache then has that many places, all filled
            each.read(tokens.tolist())
        return [
            parts[0][None] if len(parts) == 1 else np.stack(parts)
            for parts in zip(*(each.take() for each in texts), strict=True)
        ]

    def text(
        self,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
    ) -> Text:
        """See ``Engine``."""
        generation = self._generation
        if generation is None:
            raise EngineError(
                f"{self._shown}: only scores and cannot write text, as it was exported with "
                "--context 0; 'seedtune export MODEL NEW_BUNDLE' makes one that writes"
            )
        check_array("values", values, np.float32, 1)
        if values.shape != (self.entries,):
            raise EngineError(f"values has {len(values)} entries, the program takes {self.entries}")
        if adapter is not None:
            check_adapter(adapter, self.adapter_shape)
        check_terms(terms, self.terms_shapes)
        self._check_writing(generation)
        self._load(COLUMNS)
        # Scattered once, since it is the same for every token of a text.
        (scattered,) = self._run(COLUMNS, [values[None]], [(1, generation.columns)])
        self._load(GENERATE)
        inputs = [scattered, *self._tuned(adapter, terms)]
        return Text(
            lambda given, shapes: self._run(GENERATE, given, shapes),
            generation,
            self._vocabulary,
            inputs,
        )

"""What an engine is: a module that says which programs it runs, and what it opens runs one.

An engine is one module of this folder and one line in ``engines.ENGINES``. It alone imports its
library, and only inside functions: ``inspect`` asks engines whether they are available.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Bundle, Program
from ..bundle.terms import inside_count
from ..errors import EngineError
from ..tasks import Batch
from .text import Text

Terms = Sequence[NDArray[np.float32]]
"""Of a program's ``terms_shapes``, all of them; or none, which stands for zeros."""


class EngineUnavailable(EngineError):
    """This machine lacks what the engine is made from; another engine may do."""


@dataclass(frozen=True)
class Scores:
    """What one pass returns. The arrays are the caller's."""

    logp: NDArray[np.float32]
    """float32 ``[P, N, C]``, log-softmax over the whole vocabulary at the candidates."""
    hidden: NDArray[np.float32] | None
    """float32 ``[P, N, W]``, states of the residual stream at the positions (see
    ``export.program.block_tap``); None if the program returns none. The same forward computes
    them, and handing them out costs a copy."""
    inside: tuple[NDArray[np.float32], ...] = ()
    """Where they were asked for, what a gradient of terms is made of (see
    ``export.program.score_program``): float32 ``[P, N, S / D]``, then ``[P, N, D]`` of each block
    that has terms."""


class Engine(ABC):
    """An open program. A call from another thread waits for the one before."""

    entries: int
    """Number of sensitive values: K."""
    hidden_width: int
    """Width W of the hidden states; 0 if the program returns none."""
    adapter_shape: tuple[int, int] | None = None
    """``(D, S)`` of the adapter that the program takes; None if it takes none."""
    terms_shapes: tuple[tuple[int, int], ...] = ()
    """``(out, rank)`` of each low-rank term that the program takes; none if it takes none."""
    program: str = ""
    """Format and activations of the program, which a journal notes; set by ``open_engine``."""

    @abstractmethod
    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        """Score the batch's positions under each row of ``values``.

        Args:
            batch: ``tokens``, ``positions``, ``candidates`` and ``prefix`` are read; every probe
                sees the same. A prefix is read anew where it, ``values`` or ``terms`` are others
                than in the last call that had one.
            values: float32 ``[P, K]``, one row of sensitive values per probe; may be a view.
            adapter: float32 ``[D, S]``, the same for every probe: at each position it moves what
                the head reads, ``h`` ``[D]``, by ``adapter @ x`` with ``x`` the first S of the
                position's hidden states. None, as zeros, leaves ``h`` as it is to the bit.
            terms: float32 ``[out, rank]``, block by block beside gate, up and down of the upper
                blocks (see ``bundle.terms``); likewise.
            inside: whether to hand out ``Scores.inside``.

        Raises:
            EngineError: a shape lies outside the bounds that the program was exported with, the
                program takes no adapter, no terms or no prefix, or it fails.
        """

    def memory(self) -> tuple[int, int] | None:
        """Bytes held, and bytes that could still be had, where activations lie; None if that is
        this process's own memory."""
        return None

    def text(
        self,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
    ) -> Text:
        """An empty text, to be written under ``values`` float32 ``[K]``, ``adapter`` and ``terms``,
        as ``score`` takes them.

        Raises:
            EngineError: the program only scores, the engine runs none that writes, or an argument
                has another shape than the program takes.
        """
        raise EngineError(
            f"the program {self.program} only scores and cannot write text; leave the choice of "
            "the engine open (no --engine), or export the bundle for executorch, too"
        )

    def close(self) -> None:  # noqa: B027  # one may have nothing to free
        """Free the program, once a call in another thread has ended. Safe to repeat; all other
        methods, those of a ``Text`` included, raise ``EngineError`` afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _inputs(
        self,
        bounds: Bounds,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None,
        terms: Terms,
    ) -> list[NDArray[np.generic]]:
        """What ``score`` of a program takes, in its order, from the arguments of ``score``.

        Raises:
            EngineError: as ``check_request``.
        """
        check_request(bounds, batch, values, self.entries, adapter, self.adapter_shape)
        check_terms(terms, self.terms_shapes)
        own = self._tuned(adapter, terms)
        return [batch.tokens, batch.positions, batch.candidates, values, *own]

    def _tuned(
        self, adapter: NDArray[np.float32] | None, terms: Terms
    ) -> list[NDArray[np.float32]]:
        """What a program takes behind the values, zeros for what is not given."""
        found = list(self._zeros)
        if adapter is not None:
            found[0] = adapter
        if terms:
            found[1:] = terms
        return found

    @cached_property
    def _zeros(self) -> list[NDArray[np.float32]]:
        """They stand for an adapter and terms that are not given, and are made when they are first
        needed: a program may say any sizes before they are compared with the bundle's. Nobody
        writes into them, so that they take no memory."""
        adapter = [] if self.adapter_shape is None else [self.adapter_shape]
        return [np.zeros(shape, np.float32) for shape in (*adapter, *self.terms_shapes)]

    def _inside_shapes(self, probes: int, positions: int) -> list[tuple[int, ...]]:
        """Shapes of ``Scores.inside``; none where the program takes no terms."""
        count = inside_count(len(self.terms_shapes))
        if self.adapter_shape is None or not count:
            return []
        width, states = self.adapter_shape
        return [(probes, positions, states // width), *[(probes, positions, width)] * (count - 1)]


class EngineModule(Protocol):
    """What a module of an engine has."""

    FORMAT: str
    """Format of the programs that it runs, as manifests name it."""
    PROCESS_BYTES: int
    """What a process holds with its library and a bundle, before weights and activations."""
    DEVICES: tuple[str, ...]
    """What may be asked of it behind a colon, as in ``torch-int4:cuda``; empty: nothing."""

    def unavailable(self) -> str | None:
        """Why this machine cannot run it, and what to do; None if it can. Loads no library."""
        ...

    def can_change_threads(self) -> bool:
        """Whether programs can now be opened with one thread count after another, to measure."""
        ...

    def open(
        self,
        bundle: Bundle,
        program: Program,
        threads: int | None,
        memory_limit: int | None,
        **device: str,
    ) -> Engine:
        """Open ``program``, of ``FORMAT``, from the files that were checked (``bundle.checked``).

        Args:
            threads: to use; None: the engine's own number, or what the process already has.
            memory_limit: bytes that this process may hold, for engines that can keep to it.
            device: nothing, or ``device``, one of ``DEVICES``.

        Raises:
            EngineUnavailable: this machine lacks what it takes; the next engine is tried.
            EngineError: the program is refused.
            BundleError: its file is another one since the bundle was opened.
        """
        ...


def check_sizes(bundle: Bundle, file: str, engine: Engine) -> None:
    """Refuse a program that takes or returns other sizes than its bundle says."""
    for what, found, wanted in (
        ("takes {} values", engine.entries, bundle.K),
        ("returns hidden states of width {}", engine.hidden_width, bundle.hidden_width),
        ("takes an adapter of shape {}", engine.adapter_shape, bundle.adapter_shape),
        ("takes terms of shapes {:.200}", str(engine.terms_shapes), str(bundle.terms_shapes)),
    ):
        if found != wanted:
            raise EngineError(
                f"{bundle.path / file}: {what.format(found)}, the bundle says {wanted!s:.200}; "
                "export the bundle again"
            )


def check_request(
    bounds: Bounds,
    batch: Batch,
    values: NDArray[np.float32],
    entries: int,
    adapter: NDArray[np.float32] | None = None,
    adapter_shape: tuple[int, int] | None = None,
) -> None:
    """Refuse arguments of ``Engine.score`` that the program was not exported for.

    A program given larger sizes than it was planned for, or an index outside a tensor, fails deep
    inside a kernel at best; here the message names the bound.

    Args:
        entries: K, the number of sensitive values of the bundle.
        adapter_shape: of the adapter that the program takes; None if it takes none.

    Raises:
        EngineError: a type, rank, size or index is wrong.
    """
    tokens, positions, candidates = batch.tokens, batch.positions, batch.candidates
    check_array("tokens", tokens, np.int64, 2)
    check_array("positions", positions, np.int64, 1)
    check_array("candidates", candidates, np.int64, 2)
    check_array("values", values, np.float32, 2)
    if adapter is not None:
        check_adapter(adapter, adapter_shape)

    rows, length = tokens.shape
    scored, choices = candidates.shape
    _check_size("length", length, 2, bounds.length, "tokens has rows of {} tokens")
    _check_size("rows", rows * length, 2, bounds.tokens, "{} tokens are given")
    _check_size("positions", positions.shape[0], 1, bounds.positions, "{} positions are given")
    _check_size("candidates", choices, 1, bounds.candidates, "candidates has {} columns")
    _check_size("probes", values.shape[0], 1, bounds.probes, "values has {} rows")
    check_array("prefix", batch.prefix, np.int64, 1)
    _check_size("prefix", len(batch.prefix), 0, bounds.prefix, "a prefix of {} tokens is given")
    if scored != positions.shape[0]:
        raise EngineError(f"candidates has {scored} rows for {positions.shape[0]} positions")
    if values.shape[1] != entries:
        raise EngineError(f"values has {values.shape[1]} columns, the program takes {entries}")

    _check_range("tokens", tokens, None)
    _check_range("positions", positions, rows * length)
    _check_range("candidates", candidates, None)
    if len(batch.prefix):
        _check_range("prefix", batch.prefix, None)


def check_terms(terms: Terms, shapes: tuple[tuple[int, int], ...]) -> None:
    if len(terms) not in (0, len(shapes)):
        raise EngineError(f"{len(terms)} terms are given, the program takes {len(shapes)}")
    for number, (term, shape) in enumerate(zip(terms, shapes, strict=False)):
        check_array(f"terms[{number}]", term, np.float32, 2)
        if term.shape != shape:
            raise EngineError(f"terms[{number}] is {term.shape}, the program takes {shape}")


def check_adapter(adapter: NDArray[np.float32], shape: tuple[int, int] | None) -> None:
    check_array("adapter", adapter, np.float32, 2)
    if shape is None:
        raise EngineError("the program takes no adapter; export the bundle again")
    if adapter.shape != shape:
        raise EngineError(f"adapter is {adapter.shape}, the program takes {shape}")


def check_array(name: str, array: NDArray[np.generic], dtype: type, rank: int) -> None:
    if array.dtype != dtype:
        raise EngineError(f"{name} is {array.dtype}, must be {np.dtype(dtype)}")
    if array.ndim != rank:
        raise EngineError(f"{name} has {array.ndim} axes, must have {rank}")


def _check_size(bound: str, size: int, least: int, most: int, what: str) -> None:
    if not least <= size <= most:
        allowed = f"{least} to {most}" if least < most else f"{most}"
        raise EngineError(f"{what.format(size)}, the program takes {allowed} (bounds.{bound})")


def _check_range(name: str, array: NDArray[np.int64], end: int | None) -> None:
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0:
        raise EngineError(f"{name} holds {lowest}, must not be negative")
    if end is not None and highest >= end:
        raise EngineError(f"{name} holds {highest}, outside the {end} tokens given")

"""Engines run a bundle's program. Each is one file, the only one to import its library."""

import warnings
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import EngineError


class Engine(Protocol):
    """Runs the method ``score`` of a bundle's program."""

    @property
    def entries(self) -> int:
        """Number of sensitive values: K."""
        ...

    @property
    def hidden_width(self) -> int:
        """Width D of the hidden states of ``score_hidden``; 0 if the program returns none."""
        ...

    def score(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Log-probabilities of candidate next tokens under each row of ``values``.

        Args:
            tokens: int64 ``[B, T]``, right-padded rows; every probe sees the same tokens.
            positions: int64 ``[N]``, flat indices ``b * T + t`` of the hidden states to score.
            candidates: int64 ``[N, C]``, token ids whose log-probability is wanted there.
            values: float32 ``[P, K]``, one row of sensitive values per probe.

        Returns:
            float32 ``[P, N, C]``, log-softmax over the whole vocabulary at the candidates.

        Raises:
            EngineError: a shape lies outside the bounds that the program was exported with.
        """
        ...

    def score_hidden(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As ``score``, from the same forward also states of the residual stream (see
        ``export.block_tap``).

        Returns:
            log-probabilities float32 ``[P, N, C]`` and hidden states float32 ``[P, N, D]``.

        Raises:
            EngineError: also if the program returns no hidden states.
        """
        ...

    def close(self) -> None:
        """Free the program. Safe to repeat."""
        ...


def open_engine(
    bundle: Bundle,
    threads: int | Literal["auto"] | None = None,
    *,
    name: str | None = None,
    memory_limit: int | None = None,
) -> Engine:
    """Open the program of ``bundle``: torch-free where a C++ compiler is there, else the binding.

    Args:
        threads: of XNNPACK's pool; by default one a core, with ``auto`` the count that is fastest
            here (see ``thread_choice``; the binding has no such measurement).
        memory_limit: bytes that this process may hold while it measures threads; see ``Tuner``.

    Raises:
        EngineError: no engine can be loaded, or the program is refused.
    """
    from .executorch_native import NativeEngine
    from .executorch_native_build import EngineUnavailable

    try:
        if threads == "auto":
            from .threads import choose_threads

            threads = choose_threads(bundle, memory_limit)
        return NativeEngine(bundle.program_path, bundle.bounds, threads=threads)
    except EngineUnavailable as error:
        from .executorch_binding import ExecutorchBinding

        count = None if threads == "auto" else threads
        try:
            engine = ExecutorchBinding(
                bundle.program_path, bundle.bounds, bundle.K, bundle.hidden_width, count
            )
        except EngineError as other:
            raise EngineError(f"{error} (or, with torch: {other})") from None
        warnings.warn(f"falling back on executorch's Python binding: {error}", stacklevel=2)
        return engine

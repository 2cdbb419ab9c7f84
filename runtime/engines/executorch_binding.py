"""Engine over executorch's own Python binding. Needs torch; the only file to import either."""

import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Bundle, Generation, Program
from ..bundle.program import METHOD
from ..errors import EngineError
from .contract import Engine, EngineUnavailable
from .executorch_engine import ExecutorchEngine

FORMAT = "executorch"
PROCESS_BYTES = 366 * 10**6
DEVICES = ()


def unavailable() -> str | None:
    """See ``EngineModule``."""
    for name, install in (("torch", "torch"), ("executorch", "'executorch>=1.5.1,<1.6'")):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed; pip install {install}"
    return None


def can_change_threads() -> bool:
    """Never: a method keeps a pointer into the pool, and nothing says when it is freed."""
    return False


def open(bundle: Bundle, program: Program, threads: int | None, memory_limit: int | None) -> Engine:
    """See ``EngineModule``. Memory is kept to by the loop's passes alone."""
    reason = unavailable()
    if reason is not None:
        raise EngineUnavailable(reason)
    file = program.files[0]
    with bundle.checked(file) as checked:
        return ExecutorchBinding(
            checked,
            bundle.bounds,
            bundle.K,
            bundle.hidden_width,
            bundle.adapter_shape,
            bundle.terms_shapes,
            threads,
            bundle.path / file,
            program.generation,
            bundle.vocab_size,
        )


class ExecutorchBinding(ExecutorchEngine):
    """Runs the program through ``executorch.runtime``."""

    def __init__(
        self,
        program: Path,
        bounds: Bounds,
        entries: int,
        hidden: int,
        adapter: tuple[int, int] | None,
        terms: tuple[tuple[int, int], ...],
        threads: int | None,
        shown: Path | None = None,
        generation: Generation | None = None,
        vocabulary: int = 0,
    ) -> None:
        """Load ``program``. ``threads`` sets XNNPACK's pool, before any method is loaded.

        Args:
            entries: K of its values.
            hidden: width of the hidden states that it returns; 0 for none.
            adapter: shape of the adapter that it takes; None for none.
            terms: those of the terms that it takes.
            shown: its name in errors, if not ``program``.
            generation: what its ``generate`` takes, if it has one.
            vocabulary: tokens that it knows.

        Raises:
            EngineUnavailable: torch or executorch cannot be imported.
            EngineError: the program cannot be loaded.
        """
        try:
            import torch
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime, Verification
        except ImportError as error:
            raise EngineUnavailable(
                f"executorch's Python binding cannot be imported ({error}); install torch"
            ) from error
        if threads is not None:
            # Unsafe once a method is loaded; none is yet.
            portable_lib._unsafe_reset_threadpool(threads)
        super().__init__()
        self._torch: Any = torch
        self._bounds, self._shown = bounds, shown or program
        self._generation, self._vocabulary = generation, vocabulary
        self.entries, self.hidden_width, self.adapter_shape = entries, hidden, adapter
        self.terms_shapes = terms
        self._lock = threading.Lock()
        try:
            self._program: Any = Runtime.get().load_program(
                program, verification=Verification.InternalConsistency
            )
        except RuntimeError as error:
            raise EngineError(f"{self._shown}: the program cannot be loaded: {error}") from error
        self._methods: dict[str, Any] = {}
        self._load(METHOD)

    def close(self) -> None:
        """See ``Engine``."""
        self._prefix.forget()
        with self._lock:
            self._program = None
            self._methods.clear()

    def _load(self, method: str) -> None:
        with self._lock:
            if method in self._methods:
                return
            if self._program is None:
                raise self._closed()
            try:
                self._methods[method] = self._program.load_method(method)
            except RuntimeError as error:
                raise EngineError(
                    f"{self._shown}: the program cannot be loaded: {error}"
                ) from error

    def _run(
        self, method: str, inputs: list[NDArray[np.generic]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        tensors = [
            self._torch.from_numpy(np.require(each, requirements=["C", "W"])) for each in inputs
        ]
        with self._lock:  # results lie in memory that the next call overwrites
            if method not in self._methods:
                raise self._closed()
            try:
                outputs = self._methods[method].execute(tensors)
            except RuntimeError as error:
                raise EngineError(f"{self._shown}: the program failed: {error}") from error
            return [output.numpy().copy() for output in outputs[: len(shapes)]]

    def _closed(self) -> EngineError:
        return EngineError(f"{self._shown}: the program is closed")

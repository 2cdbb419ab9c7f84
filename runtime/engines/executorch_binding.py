"""Engine over executorch's own Python binding. Needs torch; the only file to import either."""

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Bundle, Program
from ..errors import EngineError
from ..tasks import Batch
from .contract import Engine, EngineUnavailable, Scores, check_request

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
            threads,
            bundle.path / file,
        )


class ExecutorchBinding(Engine):
    """Runs the program through ``executorch.runtime``."""

    def __init__(
        self,
        program: Path,
        bounds: Bounds,
        entries: int,
        hidden: int,
        adapter: tuple[int, int] | None,
        threads: int | None,
        shown: Path | None = None,
    ) -> None:
        """Load ``program``. ``threads`` sets XNNPACK's pool, before any method is loaded.

        Args:
            entries: K of its values.
            hidden: width of the hidden states that it returns; 0 for none.
            adapter: shape of the adapter that it takes; None for none.
            shown: its name in errors, if not ``program``.

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
        self._torch: Any = torch
        self._bounds, self._shown = bounds, shown or program
        self.entries, self.hidden_width, self.adapter_shape = entries, hidden, adapter
        self._no_adapter = np.zeros(adapter or 0, np.float32)
        self._lock = threading.Lock()
        try:
            self._program: Any = Runtime.get().load_program(
                program, verification=Verification.InternalConsistency
            )
            self._method: Any = self._program.load_method("score")
        except RuntimeError as error:
            raise EngineError(f"{self._shown}: the program cannot be loaded: {error}") from error

    def close(self) -> None:
        """Free the program. Safe to repeat."""
        self._method = self._program = None

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
    ) -> Scores:
        """See ``Engine``."""
        check_request(self._bounds, batch, values, self.entries, adapter, self.adapter_shape)
        request: list[NDArray[np.generic]] = [
            batch.tokens,
            batch.positions,
            batch.candidates,
            values,
        ]
        if self.adapter_shape is not None:
            request.append(self._no_adapter if adapter is None else adapter)
        inputs = [self._torch.from_numpy(np.ascontiguousarray(each)) for each in request]
        with self._lock:  # results lie in memory that the next call overwrites
            if self._method is None:
                raise EngineError(f"{self._shown}: the program is closed")
            try:
                outputs = self._method.execute(inputs)
            except RuntimeError as error:
                raise EngineError(f"{self._shown}: the program failed: {error}") from error
            wanted = outputs[: 2 if self.hidden_width else 1]
            arrays = [output.numpy().copy() for output in wanted]
        return Scores(arrays[0], arrays[1] if self.hidden_width else None)

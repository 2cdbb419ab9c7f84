"""Engine over executorch's own Python binding. Needs torch; the only file to import either."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..errors import EngineError
from .checks import check_request


class ExecutorchBinding:
    """Runs the program through ``executorch.runtime``; see ``Engine`` for the contract."""

    def __init__(self, program: Path, bounds: Bounds, entries: int, threads: int | None) -> None:
        """Load ``program``. ``threads`` sets XNNPACK's pool, before any method is loaded.

        Raises:
            EngineError: torch or executorch is missing, or the program cannot be loaded.
        """
        try:
            import torch
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime, Verification
        except ImportError as error:
            raise EngineError(
                f"executorch's Python binding cannot be imported ({error}); install torch"
            ) from error
        if threads is not None:
            # Unsafe once a method is loaded; none is yet.
            portable_lib._unsafe_reset_threadpool(threads)
        self._torch: Any = torch
        self._bounds, self._entries = bounds, entries
        try:
            self._program = Runtime.get().load_program(
                program, verification=Verification.InternalConsistency
            )
            self._method: Any = self._program.load_method("score")
        except RuntimeError as error:
            raise EngineError(f"{program}: the program cannot be loaded: {error}") from error

    def score(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        check_request(self._bounds, tokens, positions, candidates, values, self._entries)
        inputs = [
            self._torch.from_numpy(np.ascontiguousarray(each))
            for each in (tokens, positions, candidates, values)
        ]
        try:
            (output,) = self._method.execute(inputs)
        except RuntimeError as error:
            raise EngineError(f"the program failed: {error}") from error
        scores: NDArray[np.float32] = output.numpy().copy()
        return scores

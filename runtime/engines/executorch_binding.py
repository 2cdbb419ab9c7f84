"""Engine over executorch's own Python binding. Needs torch; the only file to import either."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds
from ..errors import EngineError
from .checks import by_probe, check_request, need_hidden


class ExecutorchBinding:
    """Runs the program through ``executorch.runtime``; see ``Engine`` for the contract."""

    def __init__(
        self, program: Path, bounds: Bounds, entries: int, hidden: int, threads: int | None
    ) -> None:
        """Load ``program``. ``threads`` sets XNNPACK's pool, before any method is loaded.

        Args:
            entries: K of its values.
            hidden: width of the hidden states that it returns; 0 for none.

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
        self._bounds, self._entries, self._hidden = bounds, entries, hidden
        try:
            self._program = Runtime.get().load_program(
                program, verification=Verification.InternalConsistency
            )
            self._method: Any = self._program.load_method("score")
        except RuntimeError as error:
            raise EngineError(f"{program}: the program cannot be loaded: {error}") from error

    @property
    def entries(self) -> int:
        return self._entries

    @property
    def hidden_width(self) -> int:
        return self._hidden

    def close(self) -> None:
        self._method = self._program = None

    def score(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        return self._run(tokens, positions, candidates, values)[0]

    def score_hidden(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        need_hidden(self._hidden)
        logp, hidden = self._run(tokens, positions, candidates, values)
        return logp, hidden

    def _run(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        candidates: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> list[NDArray[np.float32]]:
        check_request(self._bounds, tokens, positions, candidates, values, self._entries)
        inputs = [
            self._torch.from_numpy(np.ascontiguousarray(each))
            for each in (
                *by_probe(self._bounds, tokens, positions, candidates, len(values)),
                values,
            )
        ]
        try:
            outputs = self._method.execute(inputs)
        except RuntimeError as error:
            raise EngineError(f"the program failed: {error}") from error
        return [output.numpy().copy() for output in outputs]

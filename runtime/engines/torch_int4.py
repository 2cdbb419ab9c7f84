"""Engine over torch: int4 weights unpacked matrix by matrix, on the CPU or a GPU.

A matrix is unpacked into one workspace and multiplied by a plain product, once for all probes.
On a GPU the weights stay in its memory as int4: a model of 7 billion weights takes 4 GB there. On
the CPU they are mapped from the file and need not fit into memory.

What the dense products are computed in decides the noise of a loss under small perturbations
(SmolLM2, 16 sentences): float32 1e-6, fp16 5e-4, bf16 4e-3. Sensitive values, attention and norms
are float32 always.
"""

import importlib.util
import threading
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, Program
from ..errors import EngineError
from ..tasks import Batch
from .contract import (
    Engine,
    EngineUnavailable,
    Scores,
    Terms,
    check_sizes,
)
from .read_prefix import ReadInPieces

FORMAT = "torch"
PROCESS_BYTES = 300 * 10**6
DEVICES = ("cpu", "cpu-bf16", "cuda", "cuda-bf16", "cuda-float32", "mps")
"""Device, and number format of the dense products where it is not the device's usual one. The CPU
is tested; ``mps`` (Apple's GPUs) was not at hand."""
_USUAL = {"cpu": "float32", "cuda": "float16", "mps": "float16"}
_DTYPES = {"bf16": "bfloat16", "float32": "float32"}


def unavailable() -> str | None:
    """See ``EngineModule``."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; pip install torch"
    return None


def can_change_threads() -> bool:
    """Always, for the whole process; on a GPU they do not matter."""
    return True


def open(
    bundle: Bundle,
    program: Program,
    threads: int | None,
    memory_limit: int | None,
    device: str | None = None,
) -> Engine:
    """See ``EngineModule``. On a GPU torch's allocator keeps to the memory limit.

    Args:
        device: one of ``DEVICES``; by default ``cuda`` where there is one, else ``cpu``.
    """
    reason = unavailable()
    if reason is not None:
        raise EngineUnavailable(reason)
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailable(f"torch cannot be imported ({error})") from error
    place, dtype = _device(device, torch)
    if threads is not None:
        torch.set_num_threads(threads)
    engine = TorchEngine(bundle, program, place, dtype, memory_limit)
    try:
        check_sizes(bundle, program.files[0], engine)
    except EngineError:
        engine.close()
        raise
    return engine


def _device(asked: str | None, torch: Any) -> tuple[str, Any]:
    """Device and number format of the dense products."""
    place, _, dtype = (asked or ("cuda" if torch.cuda.is_available() else "cpu")).partition("-")
    if place == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable(
            f"torch {torch.__version__} finds no CUDA device; take torch-int4:cpu, or install "
            "a torch built for this machine's card"
        )
    if place == "mps" and not torch.backends.mps.is_available():
        raise EngineUnavailable(
            f"torch {torch.__version__} finds no Apple GPU; take torch-int4:cpu"
        )
    return place, getattr(torch, _DTYPES.get(dtype, _USUAL[place]))


class TorchEngine(Engine):
    """Runs a program's operators; see ``Engine`` for the contract."""

    def __init__(
        self, bundle: Bundle, program: Program, device: str, dtype: Any, limit: int | None
    ) -> None:
        """Open ``program`` on ``device``.

        Args:
            dtype: torch's, of the dense products.
            limit: bytes that torch may hold on a GPU.

        Raises:
            EngineError: the program is refused, or the GPU's memory cannot hold it.
            BundleError: a file is another one since the bundle was opened.
        """
        import torch

        from .torch_program import TorchProgram

        self._torch: Any = torch
        self._shown, self._bounds = bundle.path / program.files[0], bundle.bounds
        self._vocabulary = bundle.vocab_size
        self._device = torch.device(device)
        self._lock = threading.Lock()
        now, room = self.memory(), None
        if now is not None:  # on a GPU
            room = now[1]
            if limit is not None:
                total = torch.cuda.get_device_properties(self._device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
                room = min(room, limit)
        with ExitStack() as opened:
            files = {name: opened.enter_context(bundle.checked(name)) for name in program.files}
            own = files.pop(program.files[0]).read_bytes()
            self._program: TorchProgram | None = TorchProgram(
                own,
                files,
                self._device,
                dtype,
                self._shown,
                room,
                program.prefix_cache,
                bundle.terms_shapes,
            )
        self._cache = program.prefix_cache
        empty = partial(torch.empty, device=self._device)
        self._prefix: ReadInPieces[Any] = ReadInPieces(
            self._cache, self._bounds.length, empty, self._pass, torch.cat
        )
        self.entries, self.adapter_shape = self._program.entries, self._program.adapter_shape
        self.hidden_width = self._program.hidden_width
        self.terms_shapes = self._program.terms_shapes

    def memory(self) -> tuple[int, int] | None:
        """See ``Engine``; of the GPU where the program lies on one."""
        if self._device.type != "cuda":
            return None
        cuda = self._torch.cuda
        held = cuda.memory_allocated(self._device)
        free = cuda.mem_get_info(self._device)[0] + cuda.memory_reserved(self._device) - held
        return held, free

    def close(self) -> None:
        """See ``Engine``."""
        with self._lock:
            self._program = None
        self._prefix.forget()

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
        request = self._inputs(self._bounds, batch, values, adapter, terms)
        for name in ("tokens", "candidates", "prefix"):
            tokens = getattr(batch, name)
            # On a GPU an index outside ends the process's use of it.
            if tokens.size and tokens.max() >= self._vocabulary:
                raise EngineError(
                    f"{name} holds {tokens.max()}, outside the vocabulary of {self._vocabulary}"
                )
        blocks = self._prefix.blocks(batch.prefix, values, self._tuned(None, terms))
        logp, hidden, *more = self._pass(request, np.empty(0, np.int64), blocks)
        asked = more[: len(more) - len(blocks)] if inside else []
        found = (each.cpu().numpy() for each in asked)
        return Scores(logp.cpu().numpy(), hidden.cpu().numpy(), tuple(found))

    def _pass(
        self, request: list[NDArray[np.generic]], kept: NDArray[np.int64], blocks: list[Any]
    ) -> list[Any]:
        """Results of ``score`` behind ``blocks``, and the pass's own at positions ``kept``."""
        given = [*request[:5], *([kept] if self._cache else []), *request[5:]]
        with self._lock:
            if self._program is None:
                raise EngineError(f"{self._shown}: the program is closed")
            inputs = [
                self._torch.from_numpy(np.require(each, requirements=["C", "W"])).to(self._device)
                for each in given
            ]
            try:
                return self._program.run([*inputs, *blocks])
            except self._torch.OutOfMemoryError as error:
                rows, length = request[0].shape
                raise EngineError(
                    f"{self._shown}: {len(request[3])} probes of {rows} x {length} tokens do not "
                    "fit into the GPU's memory: use shorter texts, or export with lower --rows"
                ) from error
            except (RuntimeError, IndexError) as error:
                reason = str(error).splitlines()[0][:300]
                raise EngineError(f"{self._shown}: the program failed: {reason}") from error

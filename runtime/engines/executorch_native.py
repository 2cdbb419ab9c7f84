"""The torch-free engine: executorch's own libraries through a small C interface and ctypes.

Same libraries as executorch's Python binding, so the same results to the bit, in a process
that holds neither torch nor executorch's Python modules.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Bundle, Generation, Program
from ..bundle.program import GENERATE, METHOD
from ..bundle.terms import inside_count
from ..errors import EngineError
from .contract import Engine, check_sizes
from .executorch_engine import ExecutorchEngine
from .executorch_native_build import cannot_load, load_library
from .threads import usable_cores

FORMAT = "executorch"
PROCESS_BYTES = 62 * 10**6
"""Measured: what remains of SmolLM2's 141 MB with an open program without its packed weights."""
DEVICES = ()
_BINDING = "executorch.extension.pybindings._C"
"""Loaded here, its methods share the thread pool."""
_TYPES = {np.dtype(np.int64): 0, np.dtype(np.float32): 1}
_INPUTS = (("tokens", "int64", 2), ("positions", "int64", 1), ("candidates", "int64", 2))
_VALUES = ("values", "float32", 2)
_ADAPTER, _TERM = ("adapter", "float32", 2), ("term", "float32", 2)
"""Where the program takes them."""


class _Tensor(ctypes.Structure):
    """``struct seedtune_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
    )


def unavailable() -> str | None:
    """See ``EngineModule``."""
    return cannot_load()


def can_change_threads() -> bool:
    """Only while no program is open: loaded methods keep a pointer into the pool."""
    return _BINDING not in sys.modules and _interface().seedtune_programs() == 0


def open(bundle: Bundle, program: Program, threads: int | None, memory_limit: int | None) -> Engine:
    """See ``EngineModule``. Memory is kept to by the loop's passes alone."""
    file = program.files[0]
    with bundle.checked(file) as checked:
        engine = NativeEngine(
            checked,
            bundle.bounds,
            generation=program.generation,
            threads=threads,
            shown=bundle.path / file,
        )
    try:
        check_sizes(bundle, file, engine)
    except EngineError:
        engine.close()
        raise
    return engine


@dataclass(frozen=True)
class Method:
    """What a program says about one method."""

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    """Type (``int64``, ``float32`` or ``other``) and shape at its upper bound, for each input."""
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    planned_bytes: int
    """Activations and inputs that ExecuTorch itself keeps; delegates keep their own."""


class NativeProgram:
    """An open program. Any method; see ``NativeEngine`` for the one that bundles have."""

    def __init__(
        self, path: Path, *, threads: int | None = None, shown: Path | None = None
    ) -> None:
        """Open ``path``.

        Args:
            threads: size of executorch's thread pool, which the whole process shares; by default
                what an open program already set, else the cores that this process may run on.
            shown: the file's name in errors, if not ``path``.

        Raises:
            EngineUnavailable: the C interface cannot be built or loaded.
            EngineError: the file cannot be read, or a program is open in this process with
                another number of threads.
        """
        self._handle: int | None = None
        self._lock = threading.Lock()
        self._library = _interface()
        self._path = shown or path
        if not path.is_file():
            raise EngineError(f"{path}: no such file")
        wanted = threads or usable_cores()
        self._handle = self._library.seedtune_open(
            os.fsencode(path), wanted, threads is not None, _BINDING in sys.modules
        )
        if not self._handle:
            raise self._error()
        self.threads: int = self._library.seedtune_threads()

    def close(self) -> None:
        """Free the program, once a call in another thread has ended. Safe to repeat; other methods
        raise afterwards."""
        with self._lock:
            if self._handle:
                self._library.seedtune_close(self._handle)
                self._handle = None

    def __del__(self) -> None:
        self.close()

    def methods(self) -> list[str]:
        """Names of the program's methods, sorted."""
        return self._text(self._library.seedtune_methods).split()

    def describe(self, method: str) -> Method:
        """Inputs, outputs and planned memory of a method, which need not be loaded.

        Raises:
            EngineError: the program has no such method.
        """
        inputs: list[tuple[str, tuple[int, ...]]] = []
        outputs: list[tuple[str, tuple[int, ...]]] = []
        planned = 0
        text = self._text(self._library.seedtune_describe, method.encode())
        for line in text.splitlines():
            kind, first, *sizes = line.split()
            if kind == "planned":
                planned += int(first)
            else:
                each = inputs if kind == "input" else outputs
                each.append((first, tuple(map(int, sizes))))
        return Method(tuple(inputs), tuple(outputs), planned)

    def load(self, method: str) -> None:
        """Prepare a method: its delegates pack their weights, its arenas are allocated."""
        with self._lock:
            if self._library.seedtune_load(self._open(), method.encode()) != 0:
                raise self._error()

    def run(
        self, method: str, inputs: list[NDArray[np.generic]], *shapes: tuple[int, ...]
    ) -> list[NDArray[np.float32]]:
        """Run a method whose first results are float32 tensors of the given shapes.

        Args:
            inputs: int64 or float32 arrays, borrowed for the call.

        Raises:
            EngineError: the program refuses the inputs, fails or returns something else.
        """
        outputs = [np.empty(shape, np.float32) for shape in shapes]
        kept = [np.ascontiguousarray(each) for each in inputs]
        tensors = (_Tensor * len(kept))(*map(_tensor, kept))
        results = (_Tensor * len(outputs))(*map(_tensor, outputs))
        counted = (tensors, len(kept), results, len(outputs))
        with self._lock:  # a method has one set of arenas
            if self._library.seedtune_run(self._open(), method.encode(), *counted) != 0:
                raise self._error()
        return outputs

    def _open(self) -> int:
        if not self._handle:
            raise EngineError(f"{self._path}: the program is closed")
        return self._handle

    def _error(self) -> EngineError:
        text = self._library.seedtune_error().decode(errors="replace")
        return EngineError(f"{self._path}: {text}")

    def _text(self, function: Callable[..., int], *arguments: bytes) -> str:
        with self._lock:
            handle = self._open()
            buffer = ctypes.create_string_buffer(4096)
            needed = function(handle, *arguments, buffer, len(buffer))
            if needed > len(buffer):
                buffer = ctypes.create_string_buffer(needed)
                needed = function(handle, *arguments, buffer, len(buffer))
            if needed < 0:
                raise self._error()
            return buffer.value.decode()


class NativeEngine(ExecutorchEngine):
    """Runs a bundle's program; see ``Engine`` for the contract."""

    def __init__(
        self,
        program: Path,
        bounds: Bounds,
        *,
        generation: Generation | None = None,
        threads: int | None = None,
        shown: Path | None = None,
    ) -> None:
        """Open ``program`` and load ``score``, weights mapped from the file.

        Args:
            generation: what ``generate`` takes, which is loaded when it is first asked for.
            threads, shown: see ``NativeProgram``.

        Raises:
            EngineError: as ``NativeProgram``, or the program takes less than ``bounds`` says.
        """
        super().__init__()
        self._bounds, self._generation = bounds, generation
        self._shown = shown or program
        self._program = NativeProgram(program, threads=threads, shown=shown)
        described = self._program.describe(METHOD)
        found = _check_program(shown or program, described, bounds)
        self.entries, self.hidden_width, self.adapter_shape, self.terms_shapes = found
        self._program.load(METHOD)

    @property
    def threads(self) -> int:
        """Threads of executorch's pool."""
        return self._program.threads

    def close(self) -> None:
        """See ``Engine``."""
        self._prefix.forget()
        self._program.close()

    def _load(self, method: str) -> None:
        self._program.load(method)

    def _run(
        self, method: str, inputs: list[NDArray[np.generic]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        return self._program.run(method, inputs, *shapes)

    def _check_writing(self, generation: Generation) -> None:
        method, slots = self._program.describe(GENERATE), generation.context
        inputs: list[tuple[str, tuple[int, ...]]] = [
            ("int64", (1, generation.chunk)),
            ("int64", (1,)),
            ("float32", (1, generation.columns)),
            ("float32", self.adapter_shape or ()),
            *(("float32", shape) for shape in self.terms_shapes),
        ]
        outputs = []
        for heads, width in generation.cache:
            inputs += [("float32", (heads, width, slots)), ("float32", (heads, slots, width))]
            outputs += [("float32", (heads, generation.chunk, width))] * 2
        logits, *new = method.outputs or (("other", (1, 1)),)
        sizes = (list(method.inputs), new, logits[0], logits[1][:-1])
        if sizes != (inputs, outputs, "float32", (1,)):
            raise EngineError(
                f"{self._shown}: method {GENERATE} takes or returns other sizes than its bundle "
                "says; export the bundle again"
            )
        self._vocabulary = logits[1][1]


def _check_program(
    path: Path, method: Method, bounds: Bounds
) -> tuple[int, int, tuple[int, int] | None, tuple[tuple[int, int], ...]]:
    """Compare a program with the bounds that its bundle declares.

    Returns:
        K, the width of its hidden states (0: none), the adapter's shape and those of the terms.
    """
    tuned = method.inputs[len(_INPUTS) + 1 :]
    wanted = [*_INPUTS, _VALUES, *([_ADAPTER] * bool(tuned)), *([_TERM] * len(tuned[1:]))]
    if [(kind, len(shape)) for kind, shape in method.inputs] != [each[1:] for each in wanted]:
        raise EngineError(f"{path}: method {METHOD} takes other inputs than a bundle's program")
    outputs = [(kind, len(shape)) for kind, shape in method.outputs]
    inside = [("float32", 3)] * inside_count(len(tuned[1:]))
    if outputs not in ([("float32", 3)], [("float32", 3)] * 2 + inside):
        raise EngineError(f"{path}: method {METHOD} returns another type than a bundle's program")
    least = (
        (bounds.rows, bounds.length),
        (bounds.positions,),
        (bounds.positions, bounds.candidates),
        (bounds.probes, 1),
    )
    for (name, _, _), (_, shape), needed in zip(wanted, method.inputs, least, strict=False):
        if any(size < bound for size, bound in zip(shape, needed, strict=True)):
            raise EngineError(
                f"{path}: takes {name} up to {shape}, the manifest's bounds need {needed}"
            )
    hidden = method.outputs[1][1][2] if len(outputs) >= 2 else 0
    shapes = tuple((shape[0], shape[1]) for _, shape in tuned)
    return method.inputs[3][1][1], hidden, shapes[0] if shapes else None, shapes[1:]


def _tensor(array: NDArray[np.generic]) -> _Tensor:
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    return _Tensor(_TYPES[array.dtype], array.ndim, shape, array.ctypes.data)


def _interface() -> ctypes.CDLL:
    library = load_library()
    handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    number, tensors = ctypes.c_int32, ctypes.POINTER(_Tensor)
    library.seedtune_error.argtypes, library.seedtune_error.restype = [], text
    library.seedtune_threads.argtypes, library.seedtune_threads.restype = [], number
    library.seedtune_programs.argtypes, library.seedtune_programs.restype = [], number
    library.seedtune_open.argtypes = [text, *[number] * 3]
    library.seedtune_open.restype = handle
    library.seedtune_close.argtypes, library.seedtune_close.restype = [handle], None
    library.seedtune_methods.argtypes, library.seedtune_methods.restype = [handle, text, size], size
    library.seedtune_describe.argtypes = [handle, text, text, size]
    library.seedtune_describe.restype = size
    library.seedtune_load.argtypes, library.seedtune_load.restype = [handle, text], number
    library.seedtune_run.argtypes = [handle, text, tensors, number, tensors, number]
    library.seedtune_run.restype = number
    return library

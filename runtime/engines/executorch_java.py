"""Engine over ExecuTorch's Android classes, inside an app: ``org.pytorch.executorch``.

Java is reached through a module ``java``, which Chaquopy gives to the Python inside an Android app;
anything with its ``jclass`` and ``jarray`` does. Arrays go to Java and back by one copy each.
"""

import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, Generation, Program
from ..bundle.program import METHOD
from ..errors import EngineError
from .contract import Engine, EngineUnavailable
from .executorch_engine import ExecutorchEngine

FORMAT = "executorch"
PROCESS_BYTES = 210 * 10**6
"""Measured on a desktop JVM: 146 MB more than the native engine at SmolLM2's peak."""
DEVICES = ()
_PACKAGE = "org.pytorch.executorch"
_open_threads: list[int] = []
"""Thread counts that the open programs were asked for; 0: ExecuTorch's own choice. All share one
pool, which must not be resized below a loaded method."""
_open_lock = threading.Lock()


def unavailable() -> str | None:
    """See ``EngineModule``."""
    if importlib.util.find_spec("java") is None:
        return "there is no bridge to Java (module java, Chaquopy's); it runs inside an Android app"
    return None


def can_change_threads() -> bool:
    """Only while no program is open: loaded methods keep a pointer into the pool."""
    return unavailable() is None and not _open_threads


def open(bundle: Bundle, program: Program, threads: int | None, memory_limit: int | None) -> Engine:
    """See ``EngineModule``. Memory is kept to by the loop's passes alone."""
    file = program.files[0]
    with bundle.checked(file) as checked:
        return JavaEngine(bundle, checked, threads, bundle.path / file, program.generation)


class JavaEngine(ExecutorchEngine):
    """Runs the method ``score`` through ``org.pytorch.executorch.Module``."""

    def __init__(
        self,
        bundle: Bundle,
        program: Path,
        threads: int | None,
        shown: Path | None = None,
        generation: Generation | None = None,
    ) -> None:
        """Load ``program`` and its method, weights mapped from the file.

        Args:
            bundle: says what the program takes and returns, which Java does not tell.
            threads: of the pool that the process's programs share; by default what an open program
                already set, else ExecuTorch's choice, the fast cores.
            shown: its name in errors, if not ``program``.
            generation: what its ``generate`` takes, if it has one.

        Raises:
            EngineUnavailable: there is no bridge to Java, or no ExecuTorch behind it.
            EngineError: the program cannot be loaded, or one is open with other threads.
        """
        super().__init__()
        self._module: Any = None
        reason = unavailable()
        if reason is not None:
            raise EngineUnavailable(reason)
        import java

        self._java: Any = java
        self._bounds, self._shown = bundle.bounds, shown or program
        self.entries, self.hidden_width = bundle.K, bundle.hidden_width
        self.adapter_shape = bundle.adapter_shape
        self._generation, self._vocabulary = generation, bundle.vocab_size
        self.terms_shapes = bundle.terms_shapes
        self._given_zeros: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._throwable: Any = java.jclass("java.lang.Throwable")
        try:
            module = java.jclass(f"{_PACKAGE}.Module")
            self._tensors: Any = java.jclass(f"{_PACKAGE}.Tensor")
            self._values: Any = java.jclass(f"{_PACKAGE}.EValue")
        except (TypeError, self._throwable) as error:
            raise EngineUnavailable(
                f"{_PACKAGE} is not in this app ({_line(error)}); "
                "add org.pytorch:executorch-android to its dependencies"
            ) from error
        with _open_lock:
            self._threads = _pool_size(threads)
            try:
                opened = module.load(str(program), module.LOAD_MODE_MMAP, self._threads)
                try:
                    opened.loadMethod(METHOD)
                except self._throwable:
                    opened.destroy()
                    raise
            except self._throwable as error:
                raise self._failed("the program cannot be loaded", error) from error
            _open_threads.append(self._threads)
        self._module = opened

    def close(self) -> None:
        """See ``Engine``."""
        self._prefix.forget()
        with self._lock:  # Java refuses to destroy what is running
            if self._module is not None:
                self._module.destroy()
                self._module = None
                with _open_lock:
                    _open_threads.remove(self._threads)

    def _load(self, method: str) -> None:
        with self._lock:
            if self._module is None:
                raise EngineError(f"{self._shown}: the program is closed")
            try:
                self._module.loadMethod(method)
            except self._throwable as error:
                raise self._failed("the program cannot be loaded", error) from error

    def _run(
        self, method: str, inputs: list[NDArray[np.generic]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        """All inputs must be given: Java runs a program that lacks one on what was in memory."""
        with self._lock:
            if self._module is None:
                raise EngineError(f"{self._shown}: the program is closed")
            try:
                given = self._java.jarray(self._values)([self._given(each) for each in inputs])
                outputs = self._module.execute(method, given)
                if len(outputs) < len(shapes):
                    raise EngineError(
                        f"{self._shown}: returns {len(outputs)} results; export again"
                    )
                return [
                    self._taken(output, shape)
                    for output, shape in zip(outputs, shapes, strict=False)
                ]
            except self._throwable as error:
                raise self._failed("the program failed", error) from error

    def _given(self, array: NDArray[Any]) -> Any:
        """A Java tensor with a copy of ``array`` (int64 or float32); those of zeros are kept."""
        if id(array) in self._given_zeros:
            return self._given_zeros[id(array)]
        element = self._java.jlong if array.dtype == np.int64 else self._java.jfloat
        data = self._java.jarray(element)(np.ascontiguousarray(array).reshape(-1))
        shape = self._java.jarray(self._java.jlong)(np.array(array.shape, np.int64))
        tensor = self._values.from_(self._tensors.fromBlob(data, shape))
        if any(array is each for each in self._zeros):
            self._given_zeros[id(array)] = tensor
        return tensor

    def _taken(self, output: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A copy of what is in a Java tensor of float32."""
        found = np.array(output.toTensor().getDataAsFloatArray(), dtype=np.float32)
        if found.size != np.prod(shape):
            raise EngineError(
                f"{self._shown}: returns {found.size} numbers where the bundle says {shape}; "
                "export the bundle again"
            )
        return found.reshape(shape)

    def _failed(self, what: str, error: Any) -> EngineError:
        return EngineError(f"{self._shown}: {what}: {_line(error)}")


def _pool_size(threads: int | None) -> int:
    """What to ask of ExecuTorch so that open programs keep their pool; 0: its own choice."""
    if not _open_threads:
        return threads or 0
    now = _open_threads[0]
    if threads is not None and threads != now:
        said = f"{now} threads" if now else "ExecuTorch's own number of threads"
        raise EngineError(
            f"a program is open with {said}; close it before opening one with {threads}"
        )
    return now


def _line(error: BaseException) -> str:
    """What a Java exception says, in one line."""
    lines = str(error).split("\n\tat ")[0].split()
    return " ".join(lines)[:300]

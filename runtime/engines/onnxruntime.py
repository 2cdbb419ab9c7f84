"""Engine over ONNX Runtime: one wheel for Linux, Windows and macOS, no compiler, no torch.

The program keeps activations in float32, so that its losses are all but free of noise (3e-6 under
perturbations of 1e-4, where int8 activations have 1e-2): small eps mean something here.

Tested on the CPU. Other devices are ONNX Runtime's own providers; a wheel that has them and the
int4 product (``MatMulNBits``) should run the program, but none was at hand to try.
"""

import importlib.util
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bounds, Bundle, Program
from ..bundle.program import block_shapes
from ..bundle.terms import inside_count
from ..errors import EngineError
from ..tasks import Batch
from .contract import (
    Engine,
    EngineUnavailable,
    Scores,
    Terms,
    check_sizes,
)
from .onnx_files import largest_size, tensor_files
from .read_prefix import ReadInPieces
from .threads import usable_cores

FORMAT = "onnx"
PROCESS_BYTES = 70 * 10**6
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
DEVICES = tuple(_PROVIDERS)
_OLDEST = (1, 24)
"""Before it, tensors are read from whatever file of the machine a program names."""
_INSTALL = f"pip install 'onnxruntime>={_OLDEST[0]}.{_OLDEST[1]}'"
_OLD = ("not a registered function/op", "max supported IR version", "under development")
"""What older versions say of a program that is too new for them."""
_INPUTS = {"tokens": 2, "positions": 1, "candidates": 2, "values": 2, "adapter": 2}
_OUTPUTS = {"logp": 3, "hidden": 3}
_LONGEST, _LARGEST = 1 << 22, 1 << 16
"""Limits of a program's fixed sizes: of inputs with one axis, and of others but for the values."""


def unavailable() -> str | None:
    """See ``EngineModule``."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed; {_INSTALL}"
    return None


def can_change_threads() -> bool:
    """Always: a session has threads of its own."""
    return True


def open(
    bundle: Bundle,
    program: Program,
    threads: int | None,
    memory_limit: int | None,
    device: str = "cpu",
) -> Engine:
    """See ``EngineModule``. Memory is kept to by the loop's passes alone.

    Args:
        device: one of ``DEVICES``; all but the CPU are untested.
    """
    reason = unavailable()
    if reason is not None:
        raise EngineUnavailable(reason)
    own, *others = program.files
    with ExitStack() as opened:
        checked = {name: opened.enter_context(bundle.checked(name)) for name in program.files}
        for name in others:
            _refuse_link(bundle.path, name)
        data = checked[own].read_bytes()
        _refuse_sizes(data, bundle.K, bundle.path / own)
        engine = OnnxEngine(
            data, others, bundle.path / own, bundle.bounds, threads, device, program.prefix_cache
        )
    try:
        for name in others:  # opened by name: was each still the one that was checked?
            with bundle.checked(name):
                pass
        check_sizes(bundle, own, engine)
    except BaseException:
        engine.close()
        raise
    return engine


class OnnxEngine(Engine):
    """Runs a program's graph; see ``Engine`` for the contract."""

    def __init__(
        self,
        program: bytes,
        files: Sequence[str],
        shown: Path,
        bounds: Bounds,
        threads: int | None,
        device: str = "cpu",
        cache: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Open ``program``, whose tensors stand in files of its folder.

        Args:
            files: names of those that it may read.
            shown: where it lies, with its files beside it.
            threads: of the session; by default the cores that this process may run on.
            cache: ``(KV, d)`` of each block of a prefix, where it reads one.

        Raises:
            EngineUnavailable: onnxruntime cannot be imported, is too old or lacks the device.
            EngineError: the program is refused.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineUnavailable(f"onnxruntime cannot be imported ({error})") from error
        version = onnxruntime.__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            raise EngineUnavailable(f"onnxruntime {version} is too old; {_INSTALL}")
        provider = _PROVIDERS[device]
        there = onnxruntime.get_available_providers()
        if provider not in there:
            raise EngineUnavailable(
                f"onnxruntime {version} has no {provider} here, only {', '.join(there)}; install "
                "a build of it that has, or leave out the device"
            )
        self._lock = threading.Lock()
        self._bounds, self._shown, self._cache = bounds, shown, cache
        self._prefix: ReadInPieces[NDArray[np.float32]] = ReadInPieces(
            cache,
            bounds.length,
            lambda shape: np.empty(shape, np.float32),
            self._pass,
            np.concatenate,
        )
        _check_files(program, files, shown)
        self.threads = threads or usable_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # its warnings are for whoever wrote the graph
        # Sizes differ from pass to pass, so that a plan of one does not fit the next. The arena
        # stays: without it SmolLM2's peak was 252 MB, not 202, and a pass took 1.2 times as long.
        options.enable_mem_pattern = False
        # The bytes that were looked at are what is run, and nothing else than ONNX.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(shown.parent)
        )
        try:
            self._session: Any = onnxruntime.InferenceSession(
                program, options, providers=[provider], enable_fallback=0  # it prints on stdout
            )  # fmt: skip
            inputs = {each.name: each.shape for each in self._session.get_inputs()}
            outputs = {each.name: each.shape for each in self._session.get_outputs()}
        except Exception as error:  # it raises many kinds, all of them its own
            reason = _first_line(error)
            if any(part in reason for part in _OLD):
                raise EngineError(
                    f"{shown}: onnxruntime {version} is too old for it ({reason}); "
                    "pip install --upgrade onnxruntime"
                ) from error
            raise EngineError(f"{shown}: onnxruntime cannot open it: {reason}") from error
        if provider not in self._session.get_providers():
            self.close()
            raise EngineUnavailable(f"onnxruntime {version} could not start {provider}")
        blocks = range(2 * len(cache))
        terms = [f"term_{number}" for number in range(sum(map(_is_term, inputs)))]
        taken = {**_INPUTS, **({"kept": 1} if cache else {}), **dict.fromkeys(terms, 2)}
        taken |= {f"prefix_{n}": 4 for n in blocks}
        given = {**_OUTPUTS, **{f"inside_{n}": 3 for n in range(inside_count(len(terms)))}}
        given |= {f"own_{n}": 4 for n in blocks}
        for what, found, wanted in (("takes", inputs, taken), ("returns", outputs, given)):
            if {name: len(shape) for name, shape in found.items()} != wanted:
                self.close()
                raise EngineError(
                    f"{shown}: {what} {', '.join(found):.400}, not {', '.join(wanted):.400}"
                )
        for number in blocks:
            heads, width = cache[number // 2]
            shape = inputs[f"prefix_{number}"]
            if shape[1] != heads or shape[2 + number % 2] != width:
                self.close()
                raise EngineError(
                    f"{shown}: takes prefix_{number} of shape {shape}, the bundle says {heads} "
                    f"heads of {width}; export it again"
                )
        width, states = inputs["adapter"]
        shapes = [inputs[name] for name in terms]
        fixed = [size for shape in shapes for size in shape]
        sizes = inputs["values"][1], outputs["hidden"][2], width, states, *fixed
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            self.close()
            raise EngineError(f"{shown}: takes or returns no fixed sizes; export it again")
        self.entries, self.hidden_width = sizes[:2]
        self.adapter_shape = (width, states)
        self.terms_shapes = tuple((shape[0], shape[1]) for shape in shapes)

    def close(self) -> None:
        """See ``Engine``."""
        with self._lock:
            self._session = None
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
        inputs = self._inputs(self._bounds, batch, values, adapter, terms)
        blocks = self._prefix.blocks(batch.prefix, values, self._tuned(None, terms))
        logp, hidden, *more = self._pass(inputs, np.empty(0, np.int64), blocks, inside)
        return Scores(logp, hidden, tuple(more[: len(more) - len(blocks)]))

    def _pass(
        self,
        inputs: list[NDArray[np.generic]],
        kept: NDArray[np.int64],
        blocks: list[NDArray[np.float32]],
        inside: bool = False,
    ) -> list[NDArray[np.float32]]:
        """Results of ``score`` behind ``blocks``, with those that terms are learned from if asked,
        and the pass's own at positions ``kept``."""
        names = (*_INPUTS, *(f"term_{number}" for number in range(len(self.terms_shapes))))
        given = dict(zip(names, inputs, strict=True))
        if self._cache:
            given["kept"] = kept
            given |= {f"prefix_{number}": each for number, each in enumerate(blocks)}
        probes, positions, candidates = len(inputs[3]), len(inputs[1]), inputs[2]
        sizes: dict[str, tuple[int, ...]] = {"logp": (probes, *candidates.shape)}
        sizes["hidden"] = (probes, positions, self.hidden_width)
        if inside:
            for number, shape in enumerate(self._inside_shapes(probes, positions)):
                sizes[f"inside_{number}"] = shape
        for number, shape in enumerate(block_shapes(self._cache, probes, len(kept))):
            sizes[f"own_{number}"] = shape
        with self._lock:
            if self._session is None:
                raise EngineError(f"{self._shown}: the program is closed")
            try:
                return self._run(
                    {name: np.ascontiguousarray(each) for name, each in given.items()}, sizes
                )
            except Exception as error:
                reason = _first_line(error)
                raise EngineError(f"{self._shown}: the program failed: {reason}") from error

    def _run(
        self, given: dict[str, NDArray[np.generic]], sizes: dict[str, tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        """Results of these sizes: the library refuses others before it takes memory for them."""
        found = {name: np.empty(size, np.float32) for name, size in sizes.items()}
        binding = self._session.io_binding()
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        for name, array in found.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return [*found.values()]


def _check_files(program: bytes, files: Sequence[str], shown: Path) -> None:
    """Refuse a program that takes tensors from elsewhere than ``files``."""
    try:
        odd = sorted(tensor_files(program) - set(files))
    except ValueError as error:
        raise EngineError(f"{shown}: is no ONNX program ({error}); export it again") from error
    if odd:
        raise EngineError(
            f"{shown}: takes weights from {odd[0]!r:.200}, which is none of the bundle's files for "
            "it; do not use it, or export the bundle again"
        )


def _refuse_sizes(program: bytes, entries: int, shown: Path) -> None:
    """Refuse a program that declares a size beyond use: what follows from its sizes is computed
    while it is opened, in as much memory as that takes."""
    try:
        for axes, most in ((1, _LONGEST), (2, max(_LARGEST, entries))):
            found = largest_size(program, axes=axes)
            if found > most:
                raise EngineError(
                    f"{shown}: declares a size of {found}, at most {most} make sense here"
                )
    except ValueError as error:
        raise EngineError(f"{shown}: is no ONNX program ({error}); export it again") from error


def _refuse_link(folder: Path, name: str) -> None:
    """onnxruntime reads no tensors behind a link that leaves the program's folder."""
    target = (folder / name).resolve()
    if target.parent != folder.resolve():
        raise EngineError(
            f"{folder / name}: is a link to {target}, and onnxruntime follows none out of the "
            f"bundle's folder; copy the bundle (cp -rL {folder} COPY)"
        )


def _is_term(name: str) -> bool:
    return name.startswith("term_")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""Engines run a bundle's programs. Each is one module, the only one to import its library.

``contract`` says what an engine is; importing this package loads none.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, cast

from ..bundle import Bundle, Program
from ..errors import EngineError
from .contract import Engine, EngineModule, EngineUnavailable, Scores, Terms
from .text import Text
from .threads import check_threads, choose_threads

__all__ = [
    "ENGINES",
    "Engine",
    "Scores",
    "Terms",
    "Text",
    "engine_module",
    "engines_of",
    "open_engine",
]

ENGINES = {
    "executorch-native": ".executorch_native",
    "executorch-binding": ".executorch_binding",
    "executorch-java": ".executorch_java",
    "onnxruntime": ".onnxruntime",
    "torch-int4": ".torch_int4",
}
"""Name and module of each engine, in the order in which they are tried."""


def open_engine(
    bundle: Bundle,
    threads: int | Literal["auto"] = "auto",
    *,
    name: str | None = None,
    memory_limit: int | None = None,
) -> Engine:
    """Open a program of ``bundle`` with the first engine that works here. Close it after use.

    Args:
        threads: ``auto`` measures once which count is fastest here and remembers it (see
            ``threads``), where the engine lets it be changed.
        name: the engine to take, and no other; where it runs on several devices, one of these
            may follow behind a colon (``torch-int4:cuda``).
        memory_limit: bytes that this process may hold; see ``Tuner``.

    Raises:
        EngineError: no engine runs a program of the bundle here, its program is refused, or
            ``threads`` is no number of threads.
        BundleError: a program's file is another one since the bundle was opened.
    """
    if threads != "auto":
        check_threads(threads)
    reasons: list[str] = []
    for engine, module, program in engines_of(bundle, name):
        try:
            device = _device(engine, module)
            opens = _opener(module, bundle, program, memory_limit, device)
            count = None if threads == "auto" else threads
            if threads == "auto" and module.can_change_threads():
                count = choose_threads(bundle, engine, opens, memory_limit)
            opened = opens(count)
        except EngineUnavailable as error:
            reasons.append(f"{engine}: {error}")
            continue
        opened.program = f"{program.format} ({program.activations})"[:60]  # fits a note
        if reasons:
            warnings.warn(f"falling back on {engine} ({'; '.join(reasons)})", stacklevel=2)
        return opened
    raise EngineError(f"no engine runs {bundle.path} here: {'; '.join(reasons)}")


def _opener(
    module: EngineModule,
    bundle: Bundle,
    program: Program,
    memory_limit: int | None,
    device: dict[str, str],
) -> Callable[[int | None], Engine]:
    """Opens with so many threads, None for the engine's own number."""
    return lambda threads: module.open(bundle, program, threads, memory_limit, **device)


def engine_module(name: str) -> EngineModule:
    """The module of an engine, whatever its device; its library is not loaded yet.

    Raises:
        EngineError: there is no engine of that name.
    """
    plain = name.partition(":")[0]
    if plain not in ENGINES:
        raise EngineError(f"engine {name!r} is unknown; engines: {', '.join(ENGINES)}")
    return cast(EngineModule, importlib.import_module(ENGINES[plain], __package__))


def _device(name: str, module: EngineModule) -> dict[str, str]:
    """What a name asks of its engine besides itself, as an argument of ``EngineModule.open``."""
    plain, colon, device = name.partition(":")
    if not colon:
        return {}
    if device not in module.DEVICES:
        known = ", ".join(f"{plain}:{each}" for each in module.DEVICES) or f"none but {plain}"
        raise EngineError(f"engine {name!r} is unknown; take {known}")
    return {"device": device}


def engines_of(
    bundle: Bundle, name: str | None = None
) -> Iterator[tuple[str, EngineModule, Program]]:
    """Engines that run a program of the bundle, whether available here or not, best first.

    Args:
        name: that engine alone.

    Raises:
        EngineError: there is none, or no engine of that name.
    """
    fitting = False
    for engine in ENGINES if name is None else [name]:
        module = engine_module(engine)
        program = bundle.program(module.FORMAT)
        if program is not None:
            fitting = True
            yield engine, module, program
    if not fitting:
        formats = ", ".join(program.format for program in bundle.programs)
        raise EngineError(
            f"{bundle.path}: has programs for {formats}, none that "
            f"{name or 'an engine of this seedtune'} runs; export one"
        )

"""How ``executorch_native.cpp`` is compiled against an executorch package. Needs Python alone: the
build of a wheel loads this file by its path.
"""

from pathlib import Path

SOURCE = Path(__file__).with_name("executorch_native.cpp")
CARRIED = Path(__file__).with_name("native")
"""In a wheel that carries the engine: it, and the libraries that it needs."""
ENGINE = "libseedtune_native.so"

# In the order of loading: each needs only those before it. Kernels and backends register
# themselves when they are loaded, and no symbol of theirs is referenced.
LIBRARIES = (
    "executorch",
    "executorch_threadpool",
    "executorch_kernels_optimized",
    "executorch_backend_xnnpack",
)
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-Wno-deprecated-declarations",
    "-DC10_USING_CUSTOM_GENERATED_MACROS",
    "-DET_EVENT_TRACER_ENABLED",
    "-DET_USE_THREADPOOL",
)


def command(compiler: list[str], executorch: Path, target: Path) -> list[str]:
    """The command that compiles the engine into ``target``.

    The library names executorch's without their folder, since they are loaded first: it stays good
    when the environment moves.

    Args:
        compiler: command of a C++17 compiler, a cross compiler for another machine's wheel.
        executorch: folder of the executorch package to build against.
    """
    include = executorch / "include"
    return [
        *compiler,
        *FLAGS,
        f"-I{include}",
        f"-I{include}/executorch/runtime/core/portable_type/c10",
        str(SOURCE),
        f"-L{executorch / 'lib'}",
        "-Wl,--no-as-needed",
        *(f"-l{name}" for name in LIBRARIES),
        "-Wl,--allow-shlib-undefined",
        "-o",
        str(target),
    ]


def library(folder: Path, name: str) -> Path:
    """The file of one of ``LIBRARIES`` in ``folder``."""
    return folder / f"lib{name}.so"

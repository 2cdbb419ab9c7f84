"""Build and load the C interface ``executorch_native.cpp``, against the executorch wheel.

The wheel's headers and libraries are used where they lie; executorch is not imported, and
nothing here needs torch. The built library is kept in seedtune's cache. A wheel of seedtune's own
for one platform carries all of it built, and then nothing is compiled (see ``setup.py``).
"""

import ctypes
import hashlib
import importlib.util
import os
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from ..errors import warn
from ..files import clean_up, default_cache, is_whole, place_hashed, workplace
from .contract import EngineUnavailable
from .executorch_native_compile import (
    CARRIED,
    ENGINE,
    FLAGS,
    LIBRARIES,
    SOURCE,
    command,
    library,
)

_COMPILERS = ("c++", "g++", "clang++")
_OF_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_unkept: dict[str, ctypes.CDLL] = {}
"""Libraries that this process built for itself alone."""


def find_executorch() -> Path:
    """Folder of the installed executorch package, which is not imported.

    Raises:
        EngineUnavailable: it is not installed, or has no libraries of the form of Linux wheels.
    """
    spec = importlib.util.find_spec("executorch")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in map(Path, folders):
        if library(folder / "lib", LIBRARIES[0]).is_file():
            return folder
    if folders:
        raise EngineUnavailable(
            f"{folders[0]}: no lib/libexecutorch.so; install executorch 1.5.1 or up"
        )
    if sys.platform != "linux":
        raise EngineUnavailable(
            f"the native engine does not run on {sys.platform}; pip install 'seedtune[onnx]', and "
            "export bundles with --to onnx"
        )
    raise EngineUnavailable(
        "executorch is not installed; pip install --no-deps 'executorch>=1.5.1,<1.6'"
    )


def find_compiler() -> list[str]:
    """Command of a C++ compiler: ``$CXX``, or the first of c++, g++, clang++ on the path.

    Raises:
        EngineUnavailable: there is none.
    """
    own = shlex.split(os.environ.get("CXX", ""))
    if own:
        if shutil.which(own[0]) is None:
            raise EngineUnavailable(f"CXX={own[0]}: no such compiler; correct or unset CXX")
        return own
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise EngineUnavailable(
        "the torch-free engine needs a C++17 compiler once; install g++ or clang++"
    )


def built_path(executorch: Path, platform: str) -> Path:
    """Where the library for one executorch build and platform (``linux-x86_64``) is kept."""
    digest = hashlib.sha256()
    try:
        # version.py carries the build's exact version and commit.
        for part in (SOURCE.read_bytes(), (executorch / "version.py").read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    except OSError as error:
        raise EngineUnavailable(f"{error.filename}: cannot be read: {error.strerror}") from error
    digest.update(" ".join((platform, *FLAGS)).encode())
    return default_cache() / "engines" / f"native-{digest.hexdigest()[:32]}.so"


def build(compiler: list[str], executorch: Path, target: Path) -> None:
    """Compile ``executorch_native.cpp`` into ``target``, and its hash into a file beside it.

    Each appears whole or not at all, after it reached the disk.

    Args:
        compiler, executorch: see ``executorch_native_compile.command``.

    Raises:
        EngineUnavailable: the compiler fails, or the target cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with workplace(target) as folder:
            work = folder / target.name
            arguments = command(compiler, executorch, work)
            done = subprocess.run(arguments, capture_output=True, text=True)
            if done.returncode != 0:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                reason = (errors or done.stderr.splitlines() or ["no message"])[0]
                raise EngineUnavailable(f"{compiler[0]} cannot build {SOURCE.name}: {reason}")
            work.chmod(0o755)
            place_hashed(work, target)
    except OSError as error:
        raise EngineUnavailable(
            f"{target}: cannot be written: {error}; set SEEDTUNE_CACHE"
        ) from error


def load_library() -> ctypes.CDLL:
    """The C interface: what the installed wheel carries, or what was built here, first where this
    machine has not built it yet.

    A library that another user may have written is not loaded: where that user owns the cache's
    folder for them, this process builds one of its own and keeps it nowhere.

    Raises:
        EngineUnavailable: executorch or a compiler is missing, or a library cannot be loaded.
    """
    if CARRIED.is_dir():
        return _opened(CARRIED, CARRIED / ENGINE)
    executorch = find_executorch()
    target = built_path(executorch, sysconfig.get_platform())
    if _is_ours_alone(target.parent, make=True):
        clean_up(target.parent)
        return _load(executorch, target)
    if target.name not in _unkept:
        warn(
            f"{target.parent} belongs to another user, so the engine is built anew for this "
            "process; set SEEDTUNE_CACHE to a folder of your own"
        )
        with tempfile.TemporaryDirectory(prefix="seedtune-") as folder:
            _unkept[target.name] = _load(executorch, Path(folder) / target.name)
    return _unkept[target.name]


def _load(executorch: Path, target: Path) -> ctypes.CDLL:
    # A damaged one would be mapped, and crash the process at every start.
    if not (_is_ours_alone(target) and is_whole(target)):
        build(find_compiler(), executorch, target)
    return _opened(executorch / "lib", target)


def _opened(folder: Path, target: Path) -> ctypes.CDLL:
    """The engine at ``target``, over executorch's libraries in ``folder``."""
    try:
        # With these in the process, the loader resolves the C interface's needs by name.
        for name in LIBRARIES:
            ctypes.CDLL(str(library(folder, name)))
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise EngineUnavailable(f"{target}: cannot be loaded: {error}") from error


def _is_ours_alone(path: Path, make: bool = False) -> bool:
    """Whether nobody but this user and the system's may write to a file or folder.

    Args:
        make: a folder that is not there is made, and others may not write into it any more.
    """
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        found = path.lstat()
        closable = found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode)
        if make and closable and found.st_mode & _OF_OTHERS:  # else it may be read-only
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OF_OTHERS)
            found = path.lstat()
    except OSError:
        return make and not os.path.lexists(path)  # what builds there says why it cannot
    own = found.st_uid in (0, os.geteuid())
    return own and not stat.S_ISLNK(found.st_mode) and not found.st_mode & _OF_OTHERS


def cannot_load() -> str | None:
    """Why ``load_library`` would fail, as far as can be told without building; else None."""
    if CARRIED.is_dir():
        return None
    try:
        executorch = find_executorch()
        target = built_path(executorch, sysconfig.get_platform())
        if not (_is_ours_alone(target.parent) and _is_ours_alone(target) and is_whole(target)):
            find_compiler()
    except EngineUnavailable as error:
        return str(error)
    return None

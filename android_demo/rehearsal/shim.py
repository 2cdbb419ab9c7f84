"""Android's system libraries for a process of glibc: what ``libexecutorch.so`` asks of bionic.

``libc.so`` has every symbol that Android's libraries need, under bionic's version: the few whose
form differs are written out (``shim/own.c``), the others are one jump to glibc's. ``libm.so``,
``libdl.so`` and ``libandroid.so`` are names only, ``liblog.so`` writes to standard error.

Each of Android's libraries has C++'s exceptions and an unwinder of its own, of different age, and
a JVM may bring glibc's. ``entry.so`` needs ``libexecutorch.so``, so that opening it before the
JVM loads all in one group, in which the first library's serve all, as on Android.
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Literal

from .downloads import RehearsalError, fetch, kept, run

Machine = Literal["x86_64", "arm64"]

ENTRY = "entry.so"
SYSTEM = ("libc.so", "libm.so", "libdl.so", "liblog.so", "libandroid.so")
"""In the order in which to load them."""
ANDROID = ("libc++_shared.so", "libfbjni.so", "libexecutorch.so")

_SOURCES = Path(__file__).with_name("shim")
_OWN_FILE = _SOURCES / "own.c"
_JUMP: dict[Machine, str] = {
    "x86_64": "jump_{0}: jmp *{0}@GOTPCREL(%rip)\n",
    "arm64": "jump_{0}: adrp x16, :got:{0}\n ldr x16, [x16, :got_lo12:{0}]\n br x16\n",
}
_COMPILER: dict[Machine, str] = {"x86_64": "gcc", "arm64": "aarch64-linux-gnu-gcc"}
_FLAGS = ["-shared", "-fPIC", "-O2", "-w"]


def library_folder(machine: Machine) -> Path:
    """Folder in the cache with Android's three libraries and the system's, built if needed.

    For ``arm64`` also ``pad.so``, to be preloaded.

    Raises:
        DownloadError: see ``downloads.fetch``.
        RehearsalError: there is no compiler, or it fails.
    """
    libraries = [fetch("executorch"), fetch("fbjni")]
    digest = hashlib.sha256(repr([folder.name for folder in libraries]).encode())
    for file in (Path(__file__), *sorted(_SOURCES.iterdir())):
        digest.update(file.read_bytes())
    compiler = _COMPILER[machine]

    def make(built: Path, work: Path) -> None:
        for command in (compiler, "nm"):
            if shutil.which(command) is None:
                package = "g++" if machine == "x86_64" else "g++-aarch64-linux-gnu"
                raise RehearsalError(f"the shim needs {command}: apt-get install {package}")
        for folder in libraries:
            for file in (folder / machine).iterdir():
                shutil.copy(file, built)
        _build(compiler, machine, built, work)

    return kept(f"shim-{machine}-{digest.hexdigest()[:16]}", make)


def _build(compiler: str, machine: Machine, built: Path, work: Path) -> None:
    needed = _needed([built / name for name in ANDROID])
    text = _OWN_FILE.read_text()
    own = {found[1] for found in re.finditer(r"EXPORT\(\w+, (\w+)\);", text)}
    later = set(re.findall(r"own_\w+,(\w+)@LIBC_N", text))
    jumps = sorted(set(needed) - own - later)
    lines = [".text\n"]
    for name in jumps:
        lines.append(f".globl jump_{name}\n.type jump_{name},%function\n")
        lines.append(_JUMP[machine].format(name))
        lines.append(f".symver jump_{name},{name}@{needed[name]}\n")
    lines.append('.section .note.GNU-stack,"",%progbits\n')
    (work / "jump.S").write_text("".join(lines))
    names = "; ".join(sorted({*needed, *own} - later))
    (work / "libc.map").write_text(
        f"LIBC {{ global: {names}; local: *; }};\n"
        f"LIBC_N {{ global: {'; '.join(sorted(later))}; }} LIBC;\n"
    )
    (work / "empty.map").write_text("LIBC { global: empty; local: *; };\n")
    (work / "empty.c").write_text("int empty;\n")
    sources = {
        "libc.so": [str(_OWN_FILE), "jump.S", "-Wl,--version-script=libc.map", "-lm"],
        "liblog.so": [str(_SOURCES / "log.c")],
        "libm.so": ["empty.c", "-Wl,--version-script=empty.map"],
        "libdl.so": ["empty.c", "-Wl,--version-script=empty.map"],
        "libandroid.so": ["empty.c"],
        "pad.so": [str(_SOURCES / "pad.c")],
        ENTRY: [
            "empty.c", "-Wl,--no-as-needed", str(built / ANDROID[-1]),
            "-Wl,--allow-shlib-undefined", "-Wl,--disable-new-dtags,-rpath,$ORIGIN",
        ],
    }  # fmt: skip
    (built / "libexecutorch_jni.so").symlink_to(ANDROID[-1])  # what it is called inside
    for name, arguments in sources.items():
        run(compiler, *_FLAGS, "-o", built / name, f"-Wl,-soname,{name}", *arguments, cwd=work)


def _needed(libraries: list[Path]) -> dict[str, str]:
    """Symbols of bionic that the libraries need, each with its version."""
    found: dict[str, str] = {}
    for library in libraries:
        for line in run("nm", "-D", "--undefined-only", library).splitlines():
            name, at, version = line.split()[-1].partition("@")
            if at and version.strip("@").startswith("LIBC"):
                found[name] = version.strip("@")
    return found

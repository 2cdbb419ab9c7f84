"""What a process opens to the outside: its sockets, and the files that it makes or changes."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None
    or subprocess.run(["strace", "-qq", "true"], capture_output=True).returncode != 0,
    reason="no strace, or this machine does not let it look on",
)
_FILES = (
    "openat,openat2,mkdirat,unlinkat,renameat,renameat2,linkat,symlinkat,mknodat,fchmodat,truncate,"
    "?open,?creat,?mkdir,?unlink,?rename,?link,?symlink,?mknod,?chmod"
)
_CALL = re.compile(r"^\d+ +(\w+)\((.*)$")
_NAMES = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NAME_SERVICE = "/var/run/nscd/socket"
"""Where the C library asks for the name of this user, on this machine."""


@dataclass(frozen=True)
class Trace:
    """Of a process and its children."""

    stdout: str
    sockets: list[str]
    """Calls on sockets; that of the C library's name service is none."""
    written: list[Path]
    """Files and folders that were opened to write, made, renamed or removed."""

    def outside(self, *folders: Path) -> list[Path]:
        """What was written outside of ``folders``."""
        return [
            file
            for file in self.written
            if not any(file.is_relative_to(folder) for folder in folders)
        ]


def traced(command: list[str], folder: Path, environment: dict[str, str]) -> Trace:
    """Run ``command`` in ``folder`` to its end, which must be a good one."""
    log = folder / "strace.txt"
    what = ["-e", f"trace=%network,{_FILES}", "-s", "4096", "-o", str(log)]
    done = subprocess.run(
        ["strace", "-f", "-qq", *what, *command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sockets: list[str] = []
    written: list[Path] = []
    for line in log.read_text(errors="replace").splitlines():
        found = _CALL.match(line)
        if found is None:  # the second half of an interrupted call, or a signal
            continue
        name, rest = found.groups()
        if name in ("socket", "connect", "bind", "sendto"):
            sockets.append(line)
        elif name not in _FILES.replace("?", "").split(","):
            continue  # on a socket that is there already
        elif "open" not in name or re.search("O_WRONLY|O_RDWR|O_CREAT", rest):
            names = _NAMES.findall(rest.rpartition(" = ")[0] or rest)
            written += [Path(os.path.normpath(folder / each)) for each in names]
    log.unlink()
    asks_for_names = [_NAME_SERVICE in line for line in sockets] + [False]
    kept = [
        line
        for line, asked, next_asks in zip(sockets, asks_for_names, asks_for_names[1:], strict=False)
        if not asked and not (next_asks and "socket(AF_UNIX" in line)
    ]
    return Trace(done.stdout, kept, [file for file in written if not _is_no_file(file)])


def _is_no_file(file: Path) -> bool:
    return file.parts[1:2] == ("proc",) or file in (Path("/dev/null"), Path("/dev/tty"))

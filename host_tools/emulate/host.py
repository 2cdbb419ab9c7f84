"""What the host must have for the emulator, and does for it: commands, downloads, folders."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import default_cache, kept_folder

CPU = "cortex-a76"
"""A core of 2018's phones: armv8.2 with dot products and half floats."""

NEEDED = {
    "qemu-system-aarch64": "qemu-system-arm",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
}
"""Commands of the host that the emulator calls, and the Debian packages that have them."""

_TAIL = 20
"""Lines of a command that runs for minutes that are kept for an error."""

Progress = Callable[[str], None]
"""Called with a line about what takes its time now."""


class EmulatorError(SeedtuneError):
    """The emulator cannot be set up, this host lacks what it needs, or the device failed."""


def quiet(what: str) -> None:
    """A ``Progress`` that says nothing."""


def missing_packages() -> list[str]:
    """Debian packages of ``NEEDED`` that the host lacks."""
    return [package for command, package in NEEDED.items() if shutil.which(command) is None]


def need_packages() -> None:
    """Refuse a host that lacks one of the commands.

    Raises:
        EmulatorError: with the command that installs what is missing.
    """
    missing = missing_packages()
    if missing:
        raise EmulatorError(f"the emulator needs: apt-get install {' '.join(missing)}")


def run_command(
    command: list[str], failure: str, environment: dict[str, str] | None = None
) -> None:
    """Run a command of the host to its end.

    Raises:
        EmulatorError: ``failure`` and the last line that the command wrote, where it fails.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        lines = (
            done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no reason"]
        )
        raise EmulatorError(f"{failure}: {lines[-1]}")


def follow_command(
    command: Sequence[str], *, timeout: float, line: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run ``command`` from the root folder; it dies with this process, however that dies.

    Args:
        timeout: seconds until it is killed, with the processes that it started.
        line: called with each line of its output and errors as it comes.

    Returns:
        Exit status (128 + n if signal n killed it) and the last lines.

    Raises:
        EmulatorError: the time is over.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            rest, ended = b"", False
            while not ended:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                    said = f"; its last line: {tail[-1]}" if tail else ""
                    raise EmulatorError(f"the device was not done after {timeout:.0f} s{said}")
                data = os.read(process.stdout.fileno(), 65536)
                ended = not data
                *lines, rest = (rest + data).split(b"\n")
                for each in [*lines, rest] if ended and rest else lines:
                    text = each.decode(errors="replace").rstrip("\r")
                    tail.append(text)
                    line(text)
            status = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return (status if status >= 0 else 128 - status), list(tail)


def cached_folder(name: str, fill: Callable[[Path, Path], None]) -> Path:
    """The folder ``name`` in seedtune's cache, made first where it is not there: whole, or not at
    all.

    Args:
        name: must change with whatever the content depends on.
        fill: called with the folder to fill, which is empty, and another for scratch files.

    Raises:
        EmulatorError: as ``fill``, or the cache cannot be written.
    """
    parent = default_cache() / "emulator"
    try:
        return kept_folder(parent / name, fill)
    except OSError as error:
        raise EmulatorError(f"{parent}: cannot be written: {error}; set SEEDTUNE_CACHE") from error


def download_debs(names: Sequence[str], folder: Path) -> list[Path]:
    """Debian's arm64 packages ``names`` and all that they need, as files in ``folder`` (absolute).

    By a private apt configuration: nothing is installed on the host. The packages are checked
    against the host's own sources and keys.

    Raises:
        EmulatorError: the host is not Debian, or a download fails.
    """
    archives = folder / "cache" / "archives"
    for each in (archives / "partial", folder / "lists" / "partial", folder / "state"):
        each.mkdir(parents=True)
    (folder / "status").touch()  # nothing is installed, so everything is downloaded
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::State "{folder}/state";\n'
        f'Dir::State::lists "{folder}/lists";\n'
        f'Dir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
        'APT::Architecture "arm64";\n'
        'APT::Architectures { "arm64"; };\n'
        'APT::Install-Recommends "false";\n'
        'APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
    failed = "Debian's arm64 packages cannot be downloaded (needs Debian 13)"
    run_command(["apt-get", "update"], failed, environment)
    run_command(["apt-get", "install", "--yes", "--download-only", *names], failed, environment)
    return sorted(archives.glob("*.deb"))

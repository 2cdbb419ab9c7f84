"""What the host must have for the emulator, and how its commands are run."""

import shutil
import subprocess
from collections.abc import Callable

from seedtune.runtime.errors import SeedtuneError

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

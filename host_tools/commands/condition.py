"""``tune --while COMMAND``: the run goes on while a command of the user's exits 0."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from seedtune.runtime.errors import TuningError

_LONGEST = 60.0
"""Seconds that the command may take."""
_NOT_RUN = (126, 127)
"""What a shell exits with if it cannot run a command."""


@dataclass(frozen=True)
class Condition:
    """A command of the shell."""

    command: str

    def why_rest(self) -> str | None:
        """None if it exits 0, else what it says, or what it exits with.

        Raises:
            TuningError: it cannot be run.
        """
        try:
            done = subprocess.run(
                self.command,
                shell=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_LONGEST,
            )
        except subprocess.TimeoutExpired:
            return f"{self.command} takes more than {_LONGEST:g} s"
        except OSError as error:
            raise TuningError(f"--while {self.command!r}: cannot be run: {error}") from error
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        if done.returncode in _NOT_RUN:
            raise TuningError(f"--while {self.command!r}: cannot be run: {''.join(said[:1])}")
        if done.returncode == 0:
            return None
        return said[0][:200] if said else f"{self.command} exits with {done.returncode}"

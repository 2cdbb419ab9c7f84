"""Commands of the host that run for minutes: followed line by line, stopped without remains."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence

from .host import EmulatorError

_TAIL = 20
"""Lines that are kept for an error."""


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

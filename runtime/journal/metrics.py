"""``metrics.jsonl``: losses, times, evaluations for plots. Advisory: a run resumes without it.

It stays small however long the run: of more than ``MOST`` steps only one in two (three, four) is
written.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ..files import BINARY, replace_file
from ..schema import Maybe, Real, Text, Whole, check, parse_json
from .run_folder import METRICS_FILE

MOST = 1 << 14
"""Steps of a run that have a line."""
_MOST_READ = 1 << 24
"""Bytes of the file."""
LATEST = 1 << 37
"""Seconds since 1970 up to which a time is told as a date."""
_LINE = {
    "kind": Text("step|evaluation", "step or evaluation"),
    "step": Whole(0, 2**47),
    "time": Maybe(Whole(0, LATEST)),
    "loss": Maybe(Real()),
    "seconds": Real(0),
    "metric": Maybe(Real()),
    "skipped": Maybe(str),
}


class MetricsLog:
    """Appends one JSON object a line. A line that cannot be written is dropped, not raised.

    Args:
        folder: run folder.
        steps: of the whole run.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._process, self._every, self._fd = os.getpid(), -(-steps // MOST), -1
        path = folder / METRICS_FILE
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY
            self._fd = os.open(path, flags, 0o600)
            with open(path, "rb") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        os.write(self._fd, b"\n")  # ends a line that a crash cut

    def append(self, *, kind: str, step: int, **fields: Any) -> None:
        """Write a line. Numbers that JSON does not know (NaN) become null."""
        if self._fd < 0 or step % self._every or os.getpid() != self._process:
            return
        clean: dict[str, Any] = {"kind": kind, "step": step, "time": round(time.time())}
        for name, value in fields.items():
            if isinstance(value, float) and value - value != 0:
                value = None
            clean[name] = value
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(clean, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def cut_metrics(folder: Path, steps: int) -> None:
    """Remove the lines of steps behind the first ``steps``, which are no longer part of the run.

    Raises:
        OSError: the file cannot be written.
    """
    lines = _lines(folder)
    kept = [line for line in lines if _step_of(line) <= steps]
    if len(kept) < len(lines):
        replace_file(folder / METRICS_FILE, b"".join(kept), private=True)


def _step_of(line: bytes) -> int:
    """0 for a line that tells of none."""
    try:
        return int(parse_json(line)["step"])
    except (ValueError, TypeError, KeyError):
        return 0


def read_metrics(folder: Path | str, *, steps: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run, each ``(kind, step)`` once, as last written; unreadable ones left out.

    Args:
        folder: run folder.
        steps: leave out lines of later steps, which a crash has left behind.

    Returns:
        Of a long run not all steps: each line has ``kind, step, loss, seconds`` and the ``time``
        when it was written (whole seconds since 1970), a step's also ``skipped``, an evaluation's
        ``metric``.
    """
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for line in _lines(Path(folder)):
        with contextlib.suppress(ValueError):
            fields = parse_json(line)
            check(fields, _LINE)
            key = (fields["kind"], fields["step"])
            latest.pop(key, None)
            if steps is None or key[1] <= steps:
                latest[key] = fields
    return sorted(latest.values(), key=_step)


def _lines(folder: Path) -> list[bytes]:
    """With their ends; none of a file that is not there. What something else made larger is cut."""
    with contextlib.suppress(OSError), open(folder / METRICS_FILE, "rb") as file:
        return file.read(_MOST_READ).splitlines(keepends=True)
    return []


def _step(fields: dict[str, Any]) -> int:
    return int(fields["step"])

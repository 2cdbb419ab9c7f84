"""``metrics.jsonl``: losses, times, evaluations for plots. Advisory: a run resumes without it."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a line. A line that cannot be written is dropped, not raised."""

    def __init__(self, folder: Path) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(
                folder / METRICS_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            size = os.fstat(self._fd).st_size
            if size and os.pread(self._fd, 1, size - 1) != b"\n":
                os.write(self._fd, b"\n")  # ends a line that a crash cut short

    def append(self, **fields: Any) -> None:
        """Write a line. Numbers that JSON does not know (NaN) become null."""
        if self._fd < 0:
            return
        clean = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in fields.items()}
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(clean, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_metrics(folder: Path | str, *, steps: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run, each ``(kind, step)`` once, as last written; unreadable ones left out.

    Args:
        folder: run folder.
        steps: leave out lines of later steps, which a rewind or a crash has left behind.
    """
    try:
        text = (Path(folder) / METRICS_FILE).read_text(errors="replace")
    except OSError:
        return []
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            fields = json.loads(line)
            key = (str(fields["kind"]), int(fields["step"]))
            latest.pop(key, None)
            if steps is None or key[1] <= steps:
                latest[key] = fields
    return sorted(latest.values(), key=lambda fields: int(fields["step"]))

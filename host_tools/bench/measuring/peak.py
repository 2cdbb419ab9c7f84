"""The peak memory of a part of a process."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path


def forget_peak() -> None:
    """Let the peak (``system_memory.peak_resident_bytes``) begin anew, at what is held now.

    What loading a model took and gave back is then no part of it. Linux: see ``clear_refs`` in
    proc(5).
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

"""Peak resident memory of this process."""

from pathlib import Path

import psutil


def peak_resident_bytes() -> int:
    """Largest resident size so far, in bytes.

    From the kernel's ``VmHWM`` where there is one: ``getrusage`` gives a child its parent's peak.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))

"""How long ago this process began."""

import os
import time
from pathlib import Path


def seconds_since_start() -> float:
    """Since the kernel started this process (Linux)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")

"""Memory that this process holds and could still have, as Linux tells it."""

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_V1, _V2 = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)
"""Files of a control group: its limit, what it uses; and the field of ``memory.stat`` that says
how much of that is cached files, which the kernel drops when memory is wanted."""


def resident_bytes() -> int | None:
    """Memory that this process holds now, None where the system does not tell."""
    return _field("/proc/self/status", "VmRSS:")


def peak_resident_bytes() -> int | None:
    """The most memory that this process has held; ``getrusage`` gives a child its parent's peak."""
    return _field("/proc/self/status", "VmHWM:")


def available_bytes() -> int | None:
    """Memory that could still be had, of the machine and of this process's control groups."""
    known = [_field("/proc/meminfo", "MemAvailable:"), *_left_in_groups(_GROUPS)]
    return min((each for each in known if each is not None), default=None)


def _left_in_groups(root: Path, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What is left in each group that this process is in and that has a limit."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files = root, _V2
        elif "memory" in controllers.split(","):
            top, files = root / "memory", _V1
        else:
            continue
        # Inside a container the path may be the host's, where only the top is there to see.
        place = top / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(top) and (left := _left(folder, *files)) is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / usage).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return most - used + (_field(str(folder / "memory.stat"), cached, unit=1) or 0)


def _field(file: str, name: str, unit: int = 1024) -> int | None:
    try:
        for line in Path(file).read_text(encoding="ascii").splitlines():
            if line.split(maxsplit=1)[:1] == [name]:
                return int(line.split()[1]) * unit
    except OSError:
        pass
    return None

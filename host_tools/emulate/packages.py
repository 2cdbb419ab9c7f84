"""The folder from which the emulated device imports ``seedtune``: its runtime and nothing else."""

import hashlib
import shutil
from pathlib import Path

from seedtune import runtime

from .cached_folder import cached_folder


def device_packages() -> Path:
    """Folder for the device's ``PYTHONPATH``, in seedtune's cache.

    A copy, named by its content: a run takes minutes, and an edit of the sources must not reach
    its later sessions.

    Raises:
        EmulatorError: the cache cannot be written.
    """
    source = Path(runtime.__path__[0])
    unwanted = shutil.ignore_patterns("__pycache__")
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*")):
        if file.is_file() and file.parent.name != "__pycache__":
            content = file.read_bytes()
            digest.update(f"{file.relative_to(source)}\0{len(content)}\0".encode() + content)

    def fill(folder: Path, scratch: Path) -> None:
        shutil.copytree(source, folder / "seedtune" / "runtime", ignore=unwanted)

    return cached_folder(f"packages-{digest.hexdigest()[:16]}", fill)

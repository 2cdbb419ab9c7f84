"""A new virtual environment beside a copy of the source, as whoever installs the package has it."""

import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path


def fresh(folder: Path) -> tuple[Path, Path, Callable[..., None]]:
    """Python of a new environment, a copy of the source, and pip's install there."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"

    def install(*arguments: str) -> None:
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    source = folder / "source"  # a copy: the build would leave its files in the source
    keep_out = shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__")
    shutil.copytree(Path(__file__).parents[1], source, ignore=keep_out)
    return python, source, install

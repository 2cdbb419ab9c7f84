"""A wheel of seedtune that carries its engine, built from a copy of the source."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path, executorch: Path, **environment: str) -> Path:
    """Build into ``folder``, without network.

    Args:
        executorch: the package to take libraries from.
        environment: see ``setup.py``.
    """
    source = folder / "source"
    keep_out = shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=keep_out)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, source]
    own = {"SEEDTUNE_NATIVE": "1", "SEEDTUNE_EXECUTORCH": str(executorch), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel

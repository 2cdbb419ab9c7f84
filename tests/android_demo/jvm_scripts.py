"""Runs scripts of this folder on a JVM with ExecuTorch's Android classes, a process each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "android_demo"


def command(script: str, *arguments: Any) -> list[str]:
    return [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(DEMO), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def run_script(script: str, *arguments: Any, killed: bool = False) -> Any:
    """What the script of this folder printed last, from JSON. With ``killed``, it must end by
    SIGKILL."""
    done = subprocess.run(
        command(script, *arguments),
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env=environment(),
    )
    assert done.returncode == (-9 if killed else 0), done.stdout + done.stderr
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None

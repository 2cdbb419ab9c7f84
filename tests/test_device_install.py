"""The installs of a device: no torch, no tool of the host; a bundle tunes, from the shell too."""

import importlib.util
import json
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from carrying_wheel import build_wheel
from compiler import needs_compiler
from fresh_environment import fresh
from tiny_bundle import TASK

HERE = Path(__file__).parent
OLDEST_ONNX = "1.24"
HOST_ONLY = ("torch", "torchao", "transformers", "pandas", "sympy", "pyarrow", "psutil")


def packages(python):
    """Names of what is installed."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    return {each["name"].lower() for each in json.loads(listed.stdout)}


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["onnxruntime", f"onnxruntime=={OLDEST_ONNX}.*"])
def test_onnxruntime_alone_tunes_without_compiler_and_torch(reach, tmp_path, wanted):
    """The newest one, and the oldest that the extra allows."""
    python, source, install = fresh(tmp_path)
    install(f"{source}[onnx]", wanted)
    assert not packages(python) & {*HOST_ONLY, "onnx", "executorch", "typer"} - {"sympy"}
    script = HERE / "device_run.py"
    run = [script, "tune", reach.path, tmp_path / "run", "20", "onnxruntime"]
    nothing = {"PATH": str(tmp_path), "SEEDTUNE_CACHE": str(tmp_path / "cache")}  # no compiler
    here = subprocess.run([python, *run], capture_output=True, text=True, cwd="/", env=nothing)
    assert here.returncode == 0, here.stderr
    found = json.loads(here.stdout)
    assert found["torch"] is False
    run = [script, "replay", reach.path, tmp_path / "run"]
    host = subprocess.run([sys.executable, *run], capture_output=True, text=True, cwd="/")
    assert json.loads(host.stdout)["sha256"] == found["sha256"]


@needs_compiler
@pytest.mark.slow
def test_a_fresh_environment_tunes_without_torch(tmp_path, bundle):
    python, source, install = fresh(tmp_path)
    install(str(source))
    missing = subprocess.run(
        [python, "-c", _OPEN, str(bundle.path)], capture_output=True, text=True, cwd="/"
    )
    assert "pip install --no-deps 'executorch" in missing.stderr.splitlines()[-1]
    install("--no-deps", f"executorch=={version('executorch')}")
    assert not packages(python) & {*HOST_ONLY, "typer"}

    script = HERE / "device_run.py"
    run = [script, "tune", bundle.path, tmp_path / "run", "20"]
    here = subprocess.run([python, *run], capture_output=True, text=True, cwd="/")
    assert here.returncode == 0, here.stderr
    found = json.loads(here.stdout)
    assert found["torch"] is False
    run = [script, "replay", bundle.path, tmp_path / "run"]
    host = subprocess.run([sys.executable, *run], capture_output=True, text=True, cwd="/")
    assert json.loads(host.stdout)["sha256"] == found["sha256"]

    command = tmp_path / "venv" / "bin" / "seedtune"
    without = subprocess.run([command, "--help"], capture_output=True, text=True)
    advice = "pip install 'seedtune[cli]'"
    assert without.returncode and without.stderr.endswith(f"needs its extra: {advice}\n")
    install(f"{source}[cli]")
    spec, rows = tmp_path / "task.json", tmp_path / "rows.jsonl"
    spec.write_text(json.dumps(TASK))
    rows.write_text('{"text": "a fine film", "label": 1}\n{"text": "no", "label": 0}\n' * 16)
    options = [bundle.path, tmp_path / "shell", "--task", spec, "--train", rows, "--data", rows]
    shell = subprocess.run(
        [command, "tune", *options, "--steps", "2", "--json"], capture_output=True, text=True
    )
    assert shell.returncode == 0, shell.stderr
    assert json.loads(shell.stdout)["steps"] == 2


@needs_compiler
@pytest.mark.slow
def test_a_wheel_that_carries_the_engine_is_all_that_a_device_needs(reach, tmp_path):
    """Installed where there is no compiler, no torch and no executorch, it tunes and answers."""
    (package,) = importlib.util.find_spec("executorch").submodule_search_locations
    wheel = build_wheel(tmp_path / "built", Path(package))
    assert re.fullmatch(r"seedtune-[0-9.]+-py3-none-manylinux_2_34_\w+\.whl", wheel.name)
    assert wheel.stat().st_size < 8e6
    for check, said in (
        (["twine", "check", "--strict"], "PASSED"),
        (["auditwheel", "show"], f"manylinux_2_34_{platform.machine()}"),
    ):
        done = subprocess.run([sys.executable, "-m", *check, wheel], capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    python, _, install = fresh(tmp_path)
    install(str(wheel))
    assert not packages(python) & {*HOST_ONLY, "onnx", "onnxruntime", "executorch", "typer"}
    script = HERE / "device_run.py"
    nothing = {"PATH": str(tmp_path), "SEEDTUNE_CACHE": str(tmp_path / "cache")}  # no compiler
    run = [script, "tune", reach.path, tmp_path / "run", "20"]
    here = subprocess.run([python, *run], capture_output=True, text=True, cwd="/", env=nothing)
    assert here.returncode == 0, here.stderr
    run = [script, "replay", reach.path, tmp_path / "run"]
    host = subprocess.run([sys.executable, *run], capture_output=True, text=True, cwd="/")
    assert json.loads(host.stdout)["sha256"] == json.loads(here.stdout)["sha256"]
    assert not [*(tmp_path / "cache").glob("engines/*.so")], "nothing was built"


_OPEN = """
import sys
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import open_engine
open_engine(open_bundle(sys.argv[1]))
"""

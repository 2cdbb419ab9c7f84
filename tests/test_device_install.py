"""The install of a device: no torch, no tool of the host; a bundle tunes, from the shell too."""

import json
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from compiler import needs_compiler
from exported_bundle import export_tiny_bundle
from tiny_bundle import TASK

HERE = Path(__file__).parent
HOST_ONLY = ("torch", "torchao", "transformers", "pandas", "sympy", "pyarrow", "psutil")


@needs_compiler
@pytest.mark.slow
def test_a_fresh_environment_tunes_without_torch(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = export_tiny_bundle(tmp_path_factory.getbasetemp() / "exported")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"

    def install(*arguments: str) -> None:
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    source = tmp_path / "source"  # a copy: the build would leave its files in the source
    keep_out = shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__")
    shutil.copytree(HERE.parent, source, ignore=keep_out)
    install(str(source))
    missing = subprocess.run(
        [python, "-c", _OPEN, str(bundle.path)], capture_output=True, text=True, cwd="/"
    )
    assert "pip install --no-deps 'executorch" in missing.stderr.splitlines()[-1]
    install("--no-deps", f"executorch=={version('executorch')}")
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    names = {each["name"].lower() for each in json.loads(listed.stdout)}
    assert not names & {*HOST_ONLY, "typer"}

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


_OPEN = """
import sys
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.engines import open_engine
open_engine(open_bundle(sys.argv[1]))
"""

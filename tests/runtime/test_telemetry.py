"""Nothing phones home: no engine opens a socket, or writes beside its run and our cache."""

import os
import shutil
import subprocess
import sys

import pytest
from seedtune.runtime.engines import ENGINES
from seedtune.runtime.telemetry import OFF
from traced import needs_strace, traced

JOB = """
import sys, warnings
from seedtune.runtime import open_model
from seedtune.runtime.errors import EngineError

warnings.simplefilter("ignore")
task = {"kind": "classification", "template": "{text} It was", "label_field": "label",
        "verbalisers": {"spam": " terrible", "ham": " great"}}
texts = ("rain", "a cat, and then", "", "towns")
rows = [{"text": text, "label": label} for text in texts for label in ("ham", "spam")]
name, bundle = sys.argv[1:]
with open_model(bundle, engine=name, task=task) as model:
    for estimator in ("two-point", "readout"):
        options = dict(estimator=estimator, steps=2, batch_size=4)
        with model.tuner(f"runs/{estimator}", rows, rows[:2], **options) as tuner:
            for _ in tuner:
                pass
            model.load(tuner.tuned())
    print(model.predict(rows[0]).answer)
    try:
        print(len("".join(model.generate("The film", max_tokens=4))))
    except EngineError as error:
        assert "cannot write text" in str(error), error
"""
HERE = [name for name in ENGINES if name != "executorch-java"]
"""The other one runs in an app; ``tests/android_demo`` has it."""


def environment(folder):
    """Of a user whose every folder lies in ``folder``; nothing of ours is set."""
    left = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    return left | own | {"PYTHONDONTWRITEBYTECODE": "1"}


@needs_strace
@pytest.mark.parametrize("name", HERE)
def test_no_socket_and_no_file_elsewhere(reach, tmp_path, name):
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "runs").mkdir()
    if name == "executorch-native" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    found = traced(
        [sys.executable, "job.py", name, str(reach.path)], tmp_path, environment(tmp_path)
    )
    assert found.sockets == []
    cache = tmp_path / "home" / ".cache" / "seedtune"
    assert {file for file in found.written if file.is_relative_to(tmp_path / "runs")}
    assert [
        file
        for file in found.outside(tmp_path / "runs", cache, tmp_path / "tmp")
        if file not in cache.parents
    ] == []
    assert found.stdout.split()[0] in ("ham", "spam")
    assert [each for each in (tmp_path / "tmp").rglob("*") if not each.is_dir()] == []
    assert [each.name for each in (tmp_path / "home").iterdir()] in ([], [".cache"])


@needs_strace
def test_the_look_sees_a_socket_and_a_file(tmp_path):
    """The check itself."""
    job = "import socket; socket.socket(); open('odd', 'w'); import os; os.mkdir('home/odd')"
    found = traced([sys.executable, "-c", job], tmp_path, environment(tmp_path))
    assert len(found.sockets) == 1 and "AF_INET" in found.sockets[0]
    assert found.outside(tmp_path / "home") == [tmp_path / "odd"]
    assert set(found.outside()) == {tmp_path / "odd", tmp_path / "home" / "odd"}


@pytest.mark.parametrize("package", ["runtime", "export", "host_tools"])
def test_every_package_switches_it_off_before_it_imports_others(package):
    """Also where the user's environment says otherwise."""
    script = (
        "import os, sys\n"
        "class Look:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('onnxruntime', 'transformers', 'huggingface_hub', 'torch', 'flwr'):\n"
        "            print(name, 'before'), os._exit(1)\n"
        "sys.meta_path.insert(0, Look())\n"
        f"import seedtune.{package}\n"
        f"print(all(os.environ[name] == to for name, to in {OFF!r}.items()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **dict.fromkeys(OFF, "")},
    )
    assert done.stdout.split() == ["True"], done.stdout + done.stderr

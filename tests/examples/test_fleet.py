"""What docs/fleet.md shows works as it stands, on loopback, with Flower's deployment engine."""

import json
import os
import random
import signal
import socket
import subprocess
from importlib.metadata import version

import pytest
from doc_pages import ROOT, blocks_of
from fresh_environment import fresh
from seedtune.runtime.model import open_model
from tiny_bundle import TASK

DEVICES, ROWS = 6, 55


def free_port():
    """The first of eight in a row of which none is in use."""
    while True:
        first = random.randrange(20000, 50000, 10)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", first))
                other.bind(("127.0.0.1", first + 15))
            except OSError:
                continue
            return first


@pytest.mark.slow
def test_the_page_works_as_it_stands(bundle, tmp_path):
    words = ["the film", "great plot", "dull", "bad and dull", "good", "I left because"]
    for name, count in (("train", ROWS * DEVICES), ("held_out", ROWS * DEVICES)):
        rows = [{"text": f"{words[n % 6]} {words[n % 5]}", "label": n % 2} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    (tmp_path / "model.seedtune").symlink_to(bundle.path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = [block.text for block in blocks_of("docs/fleet.md") if block.language == "sh"]
    assert len(commands) == 6
    port = free_port()
    script = "\n".join(["set -e", *commands]).replace("9410", str(port))
    script = script.replace("942$n", f"{port // 10 + 1}$n")
    # Two rounds tell what ten do, and two steps what a hundred do.
    script = script.replace(r"work=\"pooled\"", r"work=\"pooled\" rounds=2")
    script = script.replace("steps=100", "steps=2")
    assert "rounds=2" in script and "steps=2" in script
    python, source, install = fresh(tmp_path)
    install(f"{source}[cli,fleet]")
    install("--no-deps", f"executorch=={version('executorch')}")
    env = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    done = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        told, _ = done.communicate(timeout=1000)
    except subprocess.TimeoutExpired:
        told = ""
    finally:
        os.killpg(done.pid, signal.SIGTERM)
    assert told.count("6 devices, at most") == 3 + 2 + 2, told
    assert told.count("privacy: no guarantee") == 2
    assert "epsilon 1.73 against whoever sees the results, 4.73 against the server" in told
    verified = told[told.index("sha256 of the values") :].split()[4]
    assert told.count(verified) >= 2, "what the server holds is what the journal replays to"
    with open_model(bundle, task=TASK) as model:
        for file in ("learned/values", "noisy/values", *(f"device{n}" for n in range(DEVICES))):
            model.load(tmp_path / f"{file}.safetensors")

"""The arm64 device in user mode: scores, tunes, survives a kill and agrees with the host."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seedtune.host_tools.emulate.guest import Guest
from seedtune.host_tools.emulate.host import USER_MODE, missing_packages
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start

MISSING = missing_packages(USER_MODE)
pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}"),
    pytest.mark.skipif(platform.system() != "Linux", reason="qemu's user mode needs Linux"),
]
SCRIPT = Path(__file__).with_name("device_run.py")
STEPS = 60


@pytest.fixture(scope="module")
def guest() -> Guest:
    return Guest()


def told(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_guest(guest: Guest, *arguments: Any) -> dict[str, Any]:
    result = told(guest.command(SCRIPT, *map(str, arguments)))
    assert result.pop("machine") == "aarch64"
    assert result.pop("torch") is False
    return result


def on_host(*arguments: Any) -> dict[str, Any]:
    return told([sys.executable, str(SCRIPT), *map(str, arguments)])


@pytest.fixture(scope="module")
def guest_run(guest: Guest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of ``STEPS`` steps without interruption: its folder and value hash."""
    folder = tmp_path_factory.mktemp("guest") / "run"
    return folder, on_guest(guest, "tune", bundle.path, folder, STEPS)["sha256"]


def test_scores_differ_by_kernels_only(guest: Guest, bundle: Bundle, tmp_path: Path) -> None:
    """8-bit activations round differently at a tie: measured 0.005 in a log-probability."""
    on_host("score", bundle.path, tmp_path / "host.npy")
    on_guest(guest, "score", bundle.path, tmp_path / "guest.npy")
    host, ours = np.load(tmp_path / "host.npy"), np.load(tmp_path / "guest.npy")
    assert host.std() > 0.3  # an answer of constants would agree too
    np.testing.assert_allclose(ours, host, rtol=0, atol=0.05)


def test_the_device_writes_what_the_host_writes(
    guest: Guest, bundle: Bundle, tmp_path: Path
) -> None:
    on_host("write", bundle.path, tmp_path / "host.npy")
    on_guest(guest, "write", bundle.path, tmp_path / "guest.npy")
    host, ours = np.load(tmp_path / "host.npy"), np.load(tmp_path / "guest.npy")
    assert host.std() > 0.3
    same = host.argmax(1) == ours.argmax(1)
    until = len(same) if same.all() else int(np.flatnonzero(~same)[0]) + 1
    np.testing.assert_allclose(ours[:until], host[:until], rtol=0, atol=0.1)
    assert until > 3


def test_a_journal_of_the_device_replays_on_the_host(bundle: Bundle, guest_run: Any) -> None:
    folder, sha256 = guest_run
    replayed = replay(folder, Start.of(bundle))
    assert replayed.history.steps == STEPS
    assert (replayed.values.sensitive != Start.of(bundle).values).any()
    assert replayed.sha256 == sha256


def test_a_journal_of_the_host_replays_on_the_device(
    guest: Guest, bundle: Bundle, tmp_path: Path
) -> None:
    sha256 = on_host("tune", bundle.path, tmp_path / "run", STEPS)["sha256"]
    assert on_guest(guest, "replay", bundle.path, tmp_path / "run")["sha256"] == sha256


def test_kill_and_resume_end_where_an_uninterrupted_run_does(
    guest: Guest, bundle: Bundle, guest_run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = guest.command(SCRIPT, "tune", str(bundle.path), str(folder), str(STEPS))
    process = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE)
    journal = folder / "journal.bin"
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 6:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() < 0
    assert journal.exists()
    resumed = on_guest(guest, "tune", bundle.path, folder, STEPS)
    assert 1 < resumed["first_step"] <= STEPS
    assert resumed["sha256"] == guest_run[1]

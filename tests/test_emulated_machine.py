"""A whole arm64 machine with 1 GB: limits that are real, tuning that survives kills in it."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import smollm2
from carrying_wheel import build_wheel
from command_line import bad, good
from kill_run import ROWS, WRITING
from seedtune.host_tools.emulate.host import EmulatorError, missing_packages
from seedtune.host_tools.emulate.machine import PYTHON_PATH, Machine
from seedtune.host_tools.emulate.rehearsal import TOKENS
from seedtune.host_tools.emulate.system import packages_of, prepare_sysroot
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.values import Values

MISSING = missing_packages()
pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}"),
    pytest.mark.skipif(platform.system() != "Linux", reason="the emulator needs Linux"),
]


@pytest.fixture(scope="module")
def machine():
    return Machine()


def shell(machine, script, folder, **options):
    options = {"timeout": 120, **options}
    return machine.run(["sh", "-c", script], reads={}, writes={"/share": folder}, **options)


def processes_of(folder):
    """Command lines that name ``folder``, except this process's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in line and process.name != str(os.getpid()):
            found.append(line.replace(b"\0", b" ").decode())
    return found


def test_status_output_and_files_come_back(machine, tmp_path):
    (tmp_path / "with,comma").mkdir()
    lines: list[str] = []
    done = machine.run(
        ["sh", "-c", "echo said; uname -m > '/share/it is'; touch /packages/x; exit 3"],
        reads={},
        writes={"/share": tmp_path / "with,comma"},
        timeout=120,
        console=lines.append,
    )
    assert done.status == 3
    assert (tmp_path / "with,comma" / "it is").read_text() == "aarch64\n"
    assert "said" in lines
    assert any("Read-only file system" in line for line in lines)
    assert 0 < done.boot_seconds < 120


def test_memory_is_the_machines_own(machine, tmp_path, monkeypatch):
    monkeypatch.setattr("seedtune.host_tools.emulate.machine.MEMORY", 256 << 20)
    total = "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo > /share/total"
    greedy = "x = [b'1' * (1 << 20) for _ in range(1 << 14)]"
    with pytest.raises(EmulatorError, match=r"for want of memory \(256 MB\); exit status 137"):
        shell(machine, f'{total}; {PYTHON_PATH} -c "{greedy}"', tmp_path, timeout=600)
    assert 150_000 < int((tmp_path / "total").read_text()) < 256 * 1024


def test_a_panic_is_no_status(machine, tmp_path):
    with pytest.raises(EmulatorError, match="went down before the command ended"):
        shell(machine, "echo c > /proc/sysrq-trigger", tmp_path)


def test_a_timeout_leaves_nothing_behind(machine, tmp_path):
    with pytest.raises(EmulatorError, match="not done after 2 s"):
        shell(machine, "echo waiting; sleep 600", tmp_path, timeout=2)
    assert processes_of(tmp_path) == []


def test_the_machine_dies_with_its_host_process(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from seedtune.host_tools.emulate.machine import Machine\n"
        "command, share = ['sh', '-c', 'touch /share/up; sleep 600'], Path(sys.argv[1])\n"
        "Machine().run(command, reads={}, writes={'/share': share}, timeout=600)\n"
    )
    share = tmp_path / "share"
    share.mkdir()
    # What it cannot tidy up any more, its temporary folder, is then this test's own.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(share)], env=environment)
    deadline = time.monotonic() + 120
    while not (share / "up").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    assert len(processes_of(share)) == 2  # it and qemu
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while processes_of(share):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def rehearsed(bundle, steps, *more):
    """What ``seedtune emulate`` says of a run that it kills half-way and resumes."""
    found = good("emulate", bundle.path, "--steps", steps, *more)
    assert found["architecture"] == "aarch64" and found["torch"] is False
    assert (found["steps"], found["resumed_at_step"]) == (steps, steps // 2)
    assert found["same_values"] is True
    assert found["replay_sha256"] == found["values_sha256"]
    assert found["values_sha256"] != Values(Start.of(bundle).values).sha256
    assert 0.8e9 < found["device_memory_bytes"] < 2**30
    assert 0 < found["peak_rss_bytes"] < found["program_bytes"] + 150e6
    writing = found["writing"]
    assert writing["tokens"] == TOKENS or writing["ended"] == "end"
    assert 0 < writing["peak_rss_bytes"] < found["program_bytes"] + 150e6
    assert writing["text"] != ""
    if writing["same_text"]:
        assert writing["text"] == writing["host_text"]
    else:  # two tokens that are level, perhaps; the first is not by chance alone
        assert writing["first_difference"]["token"] > 1
    return found


def test_the_command_rehearses_a_wheel_that_is_all_the_device_has(bundle, tmp_path):
    """Cross-built here; of seedtune and executorch the device has nothing else."""
    executorch = prepare_sysroot() / "usr/lib/python3/dist-packages/executorch"
    platform_tag = {"CXX": "aarch64-linux-gnu-g++", "SEEDTUNE_PLATFORM": "manylinux_2_34_aarch64"}
    wheel = build_wheel(tmp_path / "built", executorch, **platform_tag)
    other = wheel.with_name("seedtune-1-py3-none-any.whl")
    told = bad(1, "emulate", bundle.path, "--wheel", other)
    assert f"{other}: is no wheel for aarch64" in told
    packages = packages_of(wheel) / "seedtune" / "runtime"
    assert (packages / "engines" / "native" / "libseedtune_native.so").exists()
    assert "/cache/engines" not in Machine(wheel=wheel)._reads, "nor is one built for it"
    rows, task = tmp_path / "rows.jsonl", tmp_path / "task.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task.write_text(json.dumps(WRITING))
    options = ("--train", rows, "--task", task, "--length", 24, "--wheel", wheel)
    found = rehearsed(bundle, 10, *options)
    assert found["estimator"] == "text-head"
    assert found["loss_difference_max"] < 0.05 < found["loss_mean"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_rehearses_the_sources_here_with_smollm2(exports):
    found = rehearsed(smollm2.first_blocks(exports), 2, "--task", "sst2")
    assert found["estimator"] == "readout"
    assert found["loss_difference_max"] < 0.3

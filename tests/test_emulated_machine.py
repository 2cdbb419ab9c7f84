"""A whole arm64 machine with 1 GB: limits that are real, tuning that survives a kill in it."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import good
from kill_run import ROWS, SPEC
from seedtune.host_tools.emulate.guest import Guest
from seedtune.host_tools.emulate.host import (
    USER_MODE,
    WHOLE_MACHINE,
    EmulatorError,
    missing_packages,
)
from seedtune.host_tools.emulate.machine import PYTHON_PATH, Machine
from seedtune.host_tools.emulate.rehearsal import Job, rehearse
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.bundle.exported_values import values_sha256
from seedtune.runtime.estimators import settings_of
from seedtune.runtime.journal.start import Start
from seedtune.runtime.tasks.rows import Row

MISSING = sorted({*missing_packages(WHOLE_MACHINE), *missing_packages(USER_MODE)})
pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}"),
    pytest.mark.skipif(platform.system() != "Linux", reason="the emulator needs Linux"),
]
STEPS = 300


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("1G")


def shell(machine: Machine, script: str, folder: Path, **options: Any) -> Any:
    options = {"timeout": 120, **options}
    return machine.run(["sh", "-c", script], reads={}, writes={"/share": folder}, **options)


def processes_of(folder: Path) -> list[str]:
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


def test_status_output_and_files_come_back(machine: Machine, tmp_path: Path) -> None:
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


def test_memory_is_the_machines_own(tmp_path: Path) -> None:
    small = Machine("256M")
    command = [PYTHON_PATH, "-c", "x = [bytearray(b'1' * (1 << 20)) for _ in range(1 << 14)]"]
    with pytest.raises(EmulatorError, match=r"for want of memory \(256 MB\); exit status 137"):
        small.run(command, reads={}, writes={"/share": tmp_path}, timeout=120)
    kilobytes = tmp_path / "total"
    shell(
        small, "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo > /share/total", tmp_path
    )
    assert 150_000 < int(kilobytes.read_text()) < 256 * 1024


def test_a_panic_is_no_status(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="went down before the command ended"):
        shell(machine, "echo c > /proc/sysrq-trigger", tmp_path)


def test_a_timeout_leaves_nothing_behind(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="not done after 12 s"):
        shell(machine, "echo waiting; sleep 600", tmp_path, timeout=12)
    assert processes_of(tmp_path) == []


def test_the_machine_dies_with_its_host_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from seedtune.host_tools.emulate.machine import Machine\n"
        "command, share = ['sh', '-c', 'touch /share/up; sleep 600'], Path(sys.argv[1])\n"
        "Machine('1G').run(command, reads={}, writes={'/share': share}, timeout=600)\n"
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


def test_a_long_run_survives_a_kill_and_replays_on_the_host(
    machine: Machine, bundle: Bundle
) -> None:
    """User mode runs the same instructions, so that another kill must end on the same bits."""

    def job(kill_after: int) -> Job:
        asked = {
            "seed": 5,
            "steps": STEPS,
            "batch_size": 2,
            "lr": 1e-3,
            "eps": 1e-2,
            "schedule": "linear",
            "eval_every": 0,
            "estimator": "two-point",
        }
        rows = [Row(row, f"row {number}") for number, row in enumerate(ROWS, 1)]
        return Job(bundle, SPEC, rows, 16, settings_of(asked), kill_after, max_tokens=12)

    found = rehearse(job(120), machine, timeout=600)
    assert found["architecture"] == "aarch64"
    assert found["torch"] is False
    assert found["steps"] == STEPS
    assert found["resumed_at_step"] == 120
    assert found["values_sha256"] != values_sha256(Start.of(bundle).values)
    assert found["replay_sha256"] == found["values_sha256"]
    assert found["loss_difference_max"] < 0.05
    assert 0.8e9 < found["device_memory_bytes"] < 2**30
    assert 0 < found["peak_rss_bytes"] < found["device_memory_bytes"]
    writing = found["writing"]
    assert writing["prompt"] == "A film about rain, to It was"  # 16 tokens are its bound
    assert writing["tokens"] == 12 or writing["ended"] == "end"
    assert 0 < writing["peak_rss_bytes"] < found["device_memory_bytes"]
    assert_same_text(writing)
    again = rehearse(job(40), Guest(), timeout=600)
    assert again["resumed_at_step"] == 40
    assert again["values_sha256"] == found["values_sha256"]
    assert again["writing"]["text"] == writing["text"]


def assert_same_text(writing: dict[str, Any]) -> None:
    """Rounding may choose otherwise between two tokens, but only where they are level."""
    difference = writing["first_difference"]
    assert (difference is None) == writing["same_text"]
    if difference is None:
        assert writing["text"] == writing["host_text"]
    else:
        assert difference["host_margin"] < 0.2


def test_the_command_tells_one_object(bundle: Bundle, tmp_path: Path) -> None:
    rows, task = tmp_path / "rows.jsonl", tmp_path / "task.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task.write_text(json.dumps(SPEC))
    options = ("--train", rows, "--task", task, "--steps", 20, "--length", 24)
    options += ("--prompt", "The cat sat", "--max-tokens", 5)
    found = good("emulate", bundle.path, "--user", *options)
    assert found["emulator"] == "user mode"
    assert found["same_values"] is True
    assert found["steps"] == 20
    assert found["resumed_at_step"] == 10
    assert found["writing"]["prompt"] == "The cat sat"
    assert found["writing"]["tokens"] == 5 or found["writing"]["ended"] == "end"
    assert found["writing"]["text"] != ""
    assert_same_text(found["writing"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_on_1_gb(machine: Machine) -> None:
    from seedtune.host_tools.data.fetch import fetch
    from seedtune.host_tools.data.named_tasks import load_task
    from seedtune.host_tools.prepare.prepare import prepare

    data = load_task("sst2")
    job = Job(
        bundle=prepare(str(fetch("smollm2-135m"))).bundle,
        task=data.spec,
        rows=[Row(row, f"sst2 train:{number}") for number, row in enumerate(data.train[:32], 1)],
        length=16,
        settings=settings_of(
            {
                "steps": 4,
                "batch_size": 2,
                "lr": 1e-4,
                "eps": 1e-2,
                "eval_every": 0,
                "estimator": "two-point",
            }
        ),
        kill_after=2,
    )
    found = rehearse(job, machine, timeout=1500)
    assert found["resumed_at_step"] == 2
    assert found["steps"] == 4
    assert found["replay_sha256"] == found["values_sha256"]
    assert found["values_sha256"] != values_sha256(Start.of(job.bundle).values)
    assert found["loss_difference_max"] < 0.3
    assert found["peak_rss_bytes"] < found["program_bytes"] + 150e6
    assert found["writing"]["tokens"] > 0
    assert found["writing"]["peak_rss_bytes"] < found["program_bytes"] + 150e6

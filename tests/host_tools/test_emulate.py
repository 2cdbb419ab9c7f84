"""What the emulator refuses and how it packs, on hosts without qemu too."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import bad
from compiler import needs_compiler
from exported_bundle import export_tiny_bundle
from faults import run_and_kill
from hypothesis import given
from hypothesis import strategies as st
from seedtune.host_tools.emulate import followed, host
from seedtune.host_tools.emulate.cached_folder import cached_folder
from seedtune.host_tools.emulate.followed import follow_command
from seedtune.host_tools.emulate.host import EmulatorError, run_command
from seedtune.host_tools.emulate.initramfs import pack_initramfs
from seedtune.host_tools.emulate.machine import parse_memory
from seedtune.host_tools.emulate.rehearsal import (
    _SCRIPT,
    Job,
    _compared,
    _write_job,
)
from seedtune.host_tools.emulate.written import compare_written
from seedtune.runtime import open_model
from seedtune.runtime.bundle import Bundle, Program
from seedtune.runtime.errors import DataError
from seedtune.runtime.estimators import settings_of
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start
from seedtune.runtime.tasks.rows import Row
from tiny_bundle import TASK, write_tiny_bundle
from tiny_run import rates

PROMPT = "It was"
WRITTEN = 6
WRITES = Program(
    "executorch",
    ("program.pte",),
    "int8 per token",
    {"score": {}, "generate": {"chunk": 8, "context": 24, "cache": [[2, 8]]}},
)
NAMES = st.text("abc/._-", min_size=1, max_size=20)


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.shutil, "which", lambda command: f"/usr/bin/{command}")


def read_newc(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Name, mode and content of every entry, read as the kernel does."""
    found, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found.append((name, mode, archive[at : at + size]))
        at += (size + 3) // 4 * 4


@given(
    st.dictionaries(NAMES, st.tuples(st.binary(max_size=50), st.booleans()), max_size=5),
    st.lists(NAMES, max_size=3),
    st.dictionaries(NAMES, NAMES, max_size=3),
)
def test_an_initramfs_holds_what_was_packed(
    files: dict[str, tuple[bytes, bool]], folders: list[str], links: dict[str, str]
) -> None:
    found = read_newc(pack_initramfs(files, folders, links))
    assert [name for name, mode, _ in found if stat.S_ISDIR(mode)] == folders
    assert {name: to.decode() for name, mode, to in found if stat.S_ISLNK(mode)} == links
    assert {
        name: (content, bool(mode & stat.S_IXUSR))
        for name, mode, content in found
        if stat.S_ISREG(mode)
    } == files


def test_memory_sizes() -> None:
    assert parse_memory("1G") == 2**30
    assert parse_memory("512M") == 2**29
    for text in ("", "G", "1", "1.5G", "-1G", "2T", "1g"):
        with pytest.raises(EmulatorError, match="not a size such as 1G"):
            parse_memory(text)
    with pytest.raises(EmulatorError, match="too little"):
        parse_memory("128M")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.shutil, "which", lambda command: None)
    message = bad(1, "emulate", tmp_path)
    assert message.startswith("the emulator needs: apt-get install qemu-system-arm ")
    message = bad(1, "emulate", tmp_path, "--user")
    assert "install qemu-user g++-aarch64-linux-gnu" in message
    assert "qemu-system-arm" not in message


@pytest.mark.usefixtures("everything_installed")
def test_bad_options_are_refused_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    bundle = write_tiny_bundle(tmp_path / "bundle").path
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "good", "label": "1"}\n')
    assert "memory '1T' is not a size" in bad(1, "emulate", bundle, "--memory", "1T")
    message = bad(1, "emulate", bundle, "--train", rows, "--length", 2000)
    assert "length 2000 lies outside 2.." in message
    rows.write_text('{"text": "good", "label": "1"}\n{"text": "bad", "label": "no"}\n')
    message = bad(DataError.exit_code, "emulate", bundle, "--train", rows)
    assert message.startswith(f"{rows}:2: ") and "'no'" in message
    plain = write_tiny_bundle(tmp_path / "plain", task=None).path
    message = bad(DataError.exit_code, "emulate", plain, "--train", rows)
    assert message == "the bundle has no task; give one with --task NAME or --task FILE"
    rows.write_text('{"text": "good", "label": "1"}\n')
    asked = ("--train", rows, "--prompt")
    message = bad(1, "emulate", bundle, *asked, "the film")
    assert "only scores and cannot write behind a prompt; leave --prompt away" in message
    writes = write_tiny_bundle(tmp_path / "writes", programs=[WRITES]).path
    message = bad(DataError.exit_code, "emulate", writes, *asked, "the film " * 12)
    assert "the prompt has 2" in message and "a text here at most 24 with its answer" in message
    message = bad(DataError.exit_code, "emulate", writes, *asked, "")
    assert message.startswith("the prompt is empty")
    assert not (tmp_path / "cache").exists()


FOUR_STEPS = settings_of({"estimator": "two-point", "steps": 4})


def test_a_kill_must_come_within_the_run(tmp_path: Path) -> None:
    bundle: Bundle = write_tiny_bundle(tmp_path / "bundle")
    for kill_after in (0, 4):
        with pytest.raises(EmulatorError, match=f"kill after step {kill_after} of 4"):
            Job(bundle, TASK, [], 4, FOUR_STEPS, kill_after)


def test_the_device_goes_on_from_the_first_rows_prompt(tmp_path: Path) -> None:
    def prompt_of(bundle: Bundle) -> list[int] | None:
        rows = [Row({"text": f"the {what}", "label": "1"}, "") for what in ("plot", "film")]
        job = Job(bundle, TASK, rows, 16, FOUR_STEPS, 2)
        return job.prompt_tokens(job.encode()[1])

    writes = write_tiny_bundle(tmp_path / "writes", programs=[WRITES])
    assert writes.tokenizer().decode(prompt_of(writes)) == "the plot It was"
    assert prompt_of(write_tiny_bundle(tmp_path / "scores")) is None


def test_a_cached_folder_is_made_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))

    def fail(folder: Path, scratch: Path) -> None:
        (folder / "half").touch()
        raise EmulatorError("no network")

    with pytest.raises(EmulatorError, match="no network"):
        cached_folder("x", fail)
    assert list((tmp_path / "emulator").iterdir()) == []
    calls = []

    def fill(folder: Path, scratch: Path) -> None:
        calls.append(folder)
        (folder / "a").touch()
        (scratch / "b").touch()

    found = cached_folder("x", fill)
    assert cached_folder("x", fill) == found == tmp_path / "emulator" / "x"
    assert len(calls) == 1
    assert [file.name for file in found.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_gone_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))

    def killed(folder: Path, scratch: Path) -> None:
        (scratch / "download").write_bytes(bytes(1000))
        os.kill(os.getpid(), signal.SIGKILL)

    folder = cached_folder("x", lambda folder, scratch: None)
    assert run_and_kill(lambda: cached_folder("y", killed), None)
    assert len(list(folder.parent.iterdir())) == 2
    assert cached_folder("x", killed) == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EmulatorError, match="set SEEDTUNE_CACHE"):
        cached_folder("x", lambda folder, scratch: None)


def test_a_failing_command_says_why() -> None:
    with pytest.raises(EmulatorError, match=r"^nothing came: last$"):
        run_command(["sh", "-c", "echo first >&2; echo last >&2; exit 2"], "nothing came")


needs_setpriv = pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="apt-get install util-linux"
)


@needs_setpriv
def test_a_followed_command_is_heard_line_by_line() -> None:
    lines: list[str] = []
    script = "echo one; echo two >&2; printf three; exit 5"
    status, tail = follow_command(["sh", "-c", script], timeout=20, line=lines.append)
    assert status == 5
    assert lines == tail == ["one", "two", "three"]
    assert follow_command(["sh", "-c", "kill -9 $$"], timeout=20, line=lines.append)[0] == 137


@needs_setpriv
def test_a_timeout_ends_children_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "held"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    passed = [0.0]  # the clock that the timeout goes by; it leaps once the command has begun
    monkeypatch.setattr(followed, "time", SimpleNamespace(monotonic=lambda: passed[0]))

    def leap(text: str) -> None:
        passed[0] = 700.0

    script = f"exec 3>'{pipe}'; sleep 600 & echo begun; wait"
    with pytest.raises(EmulatorError, match="not done after 600 s; its last line: begun"):
        follow_command(["sh", "-c", script], timeout=600, line=leap)
    deadline = time.monotonic() + 20
    while not _closed(reader):  # by the shell and by its child
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.close(reader)


def _closed(reader: int) -> bool:
    """Whether no process holds the other end any more."""
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False


def test_the_device_script_imports_the_runtime_alone() -> None:
    code = (
        "import sys; sys.argv = ['x']\n"
        "import seedtune.host_tools.emulate.tune_on_device\n"
        "heavy = ('numpy', 'seedtune.runtime')\n"
        "loaded = [name for name in sys.modules if name.startswith(heavy)]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the device runs Linux")
@needs_compiler
class TestDeviceScript:
    """What runs on the device, run here."""

    def job(self, bundle: Bundle, kill_after: int, labels: str, estimator: str) -> Job:
        rows = [Row({"text": f"rain {n}", "label": x}, "") for n, x in enumerate(labels)]
        asked = {"steps": 6, "batch_size": 2, "eval_every": 0, "estimator": estimator}
        settings = settings_of({**asked, **rates(estimator, 1e-3)})
        return Job(bundle, TASK, rows, 16, settings, kill_after, max_tokens=WRITTEN)

    @pytest.fixture
    def tune(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
        """A function: the finished script, for so many steps of rows with these labels."""
        bundle = export_tiny_bundle(tmp_path_factory.getbasetemp() / "exported")

        def run(
            kill_after: int, labels: str, estimator: str = "two-point"
        ) -> subprocess.CompletedProcess[str]:
            job = self.job(bundle, kill_after, labels, estimator)
            _write_job(job, bundle.tokenizer().encode(PROMPT).ids, tmp_path)
            command = [sys.executable, str(_SCRIPT), str(bundle.path), str(tmp_path)]
            return subprocess.run(command, capture_output=True, text=True, timeout=120)

        return run

    def test_the_kill_comes_after_its_step_however_fast_the_model(
        self, tmp_path: Path, tune: Any
    ) -> None:
        done = tune(5, "0101")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "result.json").read_text())["resumed_at_step"] == 5
        assert done.stdout.count("step 5:") == 1 and "killed; resuming\nstep 6:" in done.stdout

    @pytest.mark.parametrize("estimator", ["two-point", "readout", "per-example"])
    def test_the_host_finds_the_losses_that_the_device_had(
        self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tune: Any, estimator: str
    ) -> None:
        """Here the device is this machine, so that nothing lies between the two."""
        labels = "01" * 6
        done = tune(3, labels, estimator)
        assert done.returncode == 0, done.stderr
        bundle = export_tiny_bundle(tmp_path_factory.getbasetemp() / "exported")
        job = self.job(bundle, 3, labels, estimator)
        found = _compared(
            job, *job.encode(), tmp_path / "run", replay(tmp_path / "run", Start.of(bundle))
        )
        assert found["loss_mean"] > 0.1
        assert found["loss_difference_max"] < 1e-6
        assert 0 < found["rounding_difference_mean"] <= found["rounding_difference_max"] < 0.3

    @pytest.mark.parametrize("estimator", ["two-point", "readout"])
    def test_the_host_finds_the_text_that_the_device_wrote(
        self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tune: Any, estimator: str
    ) -> None:
        done = tune(3, "01" * 6, estimator)
        assert done.returncode == 0, done.stderr
        bundle = export_tiny_bundle(tmp_path_factory.getbasetemp() / "exported")
        told = json.loads((tmp_path / "result.json").read_text())["writing"]
        with open_model(bundle) as model:
            values = replay(tmp_path / "run", Start.of(bundle)).values
            text = model.engine.text(values[: bundle.K])
            prompt = model.prompt_tokens(PROMPT)
            wanted, logits = [], text.read(prompt)
            for _ in range(WRITTEN):
                wanted.append(int(logits.argmax()))
                logits = text.read(wanted[-1:])
        assert told["tokens"] == wanted
        assert told["first_seconds"] > 0 and told["seconds_per_token"] > 0
        assert told["peak_rss_bytes"] > 1e6

        def compared(tokens: list[int]) -> Any:
            changed = {**told, "tokens": tokens}
            return compare_written(bundle, tmp_path / "run", prompt, WRITTEN, changed)

        same = compared(wanted)
        assert same["same_text"] and same["first_difference"] is None
        assert same["text"] == same["host_text"] != "" and same["tokens"] == WRITTEN
        assert same["prompt"] == PROMPT and same["prompt_tokens"] == len(prompt)
        other = (wanted[2] + 1) % 300
        found = compared([*wanted[:2], other, *wanted[3:]])["first_difference"]
        assert found["token"] == 3
        assert found["device"] == bundle.tokenizer().decode([other])
        assert found["host"] == bundle.tokenizer().decode([wanted[2]])
        assert found["host_margin"] > 0
        ended = compared(wanted[:5])["first_difference"]
        assert (ended["token"], ended["device"]) == (6, None)

    def test_the_reason_of_a_failure_is_the_last_line(self, tune: Any) -> None:
        done = tune(5, "01x1")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("DataError: ")
        assert "rows.jsonl:3" in done.stderr.splitlines()[-1]

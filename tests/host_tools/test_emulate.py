"""What the emulator refuses and how it packs, on hosts without qemu too."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from command_line import bad
from compiler import needs_compiler
from seedtune.host_tools.emulate import host, machine
from seedtune.host_tools.emulate.host import EmulatorError, cached_folder, follow_command
from seedtune.host_tools.emulate.rehearsal import (
    _SCRIPT,
    TOKENS,
    _compared,
    _write_job,
    plan,
)
from seedtune.runtime.errors import DataError, TuningError
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks.rows import Row
from tiny_bundle import TASK

WRITING = {"kind": "completion", "template": "{text}", "completion_field": "more"}
TEXTS = ("rain", "A film about a cat, told with humour by a town, I think", "", "so-so \u2028!")
ROWS = [
    {"text": f"{text} {n}".strip(), "label": str(1 - n % 2), "more": f" it was {'good ' * n}"}
    for n, text in enumerate(TEXTS * 3)
]


@pytest.fixture
def everything_installed(monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda command: f"/usr/bin/{command}")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(host.shutil, "which", lambda command: None)
    message = bad(1, "emulate", tmp_path)
    assert message.startswith("the emulator needs: apt-get install qemu-system-arm ")


@needs_compiler
@pytest.mark.usefixtures("everything_installed")
class TestRefusals:
    """Before anything is downloaded."""

    @pytest.fixture(autouse=True)
    def no_download(self, monkeypatch):
        def fail(*arguments):
            raise AssertionError("it is being downloaded")

        monkeypatch.setattr(machine, "prepare_sysroot", fail)

    @pytest.fixture
    def files(self, bundle, tmp_path):
        """Arguments of a job that would run; rows and task stand in ``tmp_path``."""
        rows = ["good, I think", "", "so-so \u2028 but long " * 9, "bad"]
        lines = [json.dumps({"text": row, "label": i % 2}) + "\n" for i, row in enumerate(rows)]
        (tmp_path / "rows.jsonl").write_text("".join(lines))
        (tmp_path / "task.json").write_text(json.dumps(TASK))
        return (bundle.path, "--train", tmp_path / "rows.jsonl", "--task", tmp_path / "task.json")

    def test_options(self, files):
        for code, options, message in (
            (1, ("--length", 2000), "length 2000 lies outside 2..32, the bundle's bounds"),
            (1, ("--batch-size", 3), "4 rows make a run of 1 step, which leaves none after the"),
            (TuningError.exit_code, ("--estimator", "text-head"), "needs a task of writing text"),
            (TuningError.exit_code, ("--estimator", "guess"), "'guess' must be one of"),
        ):
            assert message in bad(code, "emulate", *files, *options)

    def test_rows(self, files, tmp_path):
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"text": "good", "label": "1"}\n{"text": "bad", "label": "no"}\n')
        message = bad(DataError.exit_code, "emulate", *files)
        assert message.startswith(f"{rows}:2: ") and "'no'" in message
        message = bad(DataError.exit_code, "emulate", *files[:3])
        assert message == "the bundle has no task; give one with --task NAME or --task FILE"


def job_of(bundle, spec, rows, **settings):
    given = [Row(row, f"row {number}") for number, row in enumerate(rows, 1)]
    settings = {"steps": 6, "batch_size": 2, "eval_every": 0} | settings
    return plan(bundle, spec, given, length=16, settings=settings)


@needs_compiler
def test_the_device_goes_on_from_the_first_rows_prompt(bundle):
    rows = [{"text": f"the {what}", "label": "1"} for what in ("plot", "film") * 3]
    job = job_of(bundle, TASK, rows)
    assert bundle.tokenizer().decode(list(job.prompt or ())) == "the plot It was"
    assert job.kill_after == 1  # a readout takes each example once


def test_a_cached_folder_is_made_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))

    def fail(folder, scratch):
        (folder / "half").touch()
        raise EmulatorError("no network")

    with pytest.raises(EmulatorError, match="no network"):
        cached_folder("x", fail)
    assert list((tmp_path / "emulator").iterdir()) == []
    calls = []

    def fill(folder, scratch):
        calls.append(folder)
        (folder / "a").touch()
        (scratch / "b").touch()

    found = cached_folder("x", fill)
    assert cached_folder("x", fill) == found == tmp_path / "emulator" / "x"
    assert len(calls) == 1
    assert [file.name for file in found.iterdir()] == ["a"]


needs_setpriv = pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="apt-get install util-linux"
)


@needs_setpriv
def test_a_followed_command_is_heard_line_by_line():
    lines: list[str] = []
    script = "echo one; echo two >&2; printf three; exit 5"
    status, tail = follow_command(["sh", "-c", script], timeout=20, line=lines.append)
    assert status == 5
    assert lines == tail == ["one", "two", "three"]
    assert follow_command(["sh", "-c", "kill -9 $$"], timeout=20, line=lines.append)[0] == 137


def test_the_device_script_imports_the_runtime_alone():
    code = (
        "import runpy, sys\n"
        "runpy.run_path(sys.argv[1])\n"
        "heavy = ('numpy', 'seedtune.runtime')\n"
        "loaded = [name for name in sys.modules if name.startswith(heavy)]\n"
        "assert not loaded, loaded\n"
    )
    command = [sys.executable, "-c", code, str(_SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the device runs Linux")
@needs_compiler
class TestDeviceScript:
    """What runs on the device, run here: so nothing lies between the two."""

    def run(self, job, folder):
        _write_job(job, folder)
        command = [sys.executable, str(_SCRIPT), str(job.bundle.path), str(folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    @pytest.mark.parametrize(
        ("spec", "estimator", "options"),
        [
            (TASK, "readout", {}),
            (TASK, "two-point", {"estimator": "two-point", "lr": 1e-3, "eps": 1e-2}),
            (WRITING, "text-head", {}),
        ],
    )
    def test_this_machine_finds_what_the_device_had(
        self, bundle, tmp_path, spec, estimator, options
    ):
        job = job_of(bundle, spec, ROWS, **options)
        done = self.run(job, tmp_path)
        assert done.returncode == 0, done.stderr
        # The kill comes after its step however fast the model.
        assert done.stdout.count("step 3:") == 1 and "killed; resuming\nstep 4:" in done.stdout
        found = _compared(job, tmp_path)
        assert found["estimator"] == estimator
        assert (found["steps"], found["resumed_at_step"]) == (6, 3)
        assert found["same_values"] is True
        assert found["values_sha256"] != Values(Start.of(bundle).values).sha256
        assert found["loss_mean"] > 0.1
        assert found["loss_difference_max"] < 1e-6
        writing = found["writing"]
        assert writing["same_text"] is True and writing["first_difference"] is None
        assert writing["text"] == writing["host_text"] != ""
        assert writing["tokens"] == TOKENS or writing["ended"] == "end"
        assert writing["first_seconds"] > 0 and writing["peak_rss_bytes"] > 1e6

    def test_what_the_device_had_otherwise_is_seen(self, bundle, tmp_path):
        job = job_of(bundle, WRITING, ROWS)
        assert self.run(job, tmp_path).returncode == 0
        metrics, result = tmp_path / "run" / "metrics.jsonl", tmp_path / "result.json"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        step = next(line for line in lines if line["kind"] == "step" and line["step"] == 5)
        step["loss"] += 0.25
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        told = json.loads(result.read_text())
        tokens = told["writing"]["tokens"]
        other = (tokens[2] + 1) % 300
        told["writing"]["tokens"] = [*tokens[:2], other, *tokens[3:]]
        told["values_sha256"] = "0" * 64
        result.write_text(json.dumps(told))
        found = _compared(job, tmp_path)
        assert found["same_values"] is False
        assert found["loss_difference_max"] == pytest.approx(0.25, abs=1e-6)
        decode = bundle.tokenizer().decode
        assert found["writing"]["same_text"] is False
        assert found["writing"]["first_difference"] == {
            "token": 3,
            "device": decode([other]),
            "host": decode([tokens[2]]),
        }
        told["writing"]["tokens"] = tokens[:2]
        result.write_text(json.dumps(told))
        assert _compared(job, tmp_path)["writing"]["first_difference"]["device"] is None

    def test_the_reason_of_a_failure_is_the_last_line(self, bundle, tmp_path):
        job = job_of(bundle, TASK, ROWS)
        rows = [Row({**job.rows[0], "label": "x"}, ""), *job.rows[1:]]
        done = self.run(replace(job, rows=rows), tmp_path)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("DataError: ")
        assert "rows.jsonl:1" in done.stderr.splitlines()[-1]

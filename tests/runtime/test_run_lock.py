"""One writer a run, whatever is deleted, linked or forked; private files; Windows' kind of lock."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from faults import run_and_kill
from seedtune.runtime.errors import JournalError
from seedtune.runtime.journal.format import Note
from seedtune.runtime.journal.lock import RunLock
from seedtune.runtime.journal.operations import branch, rewind
from seedtune.runtime.journal.run_folder import JOURNAL_FILE, LOCK_FILE, METRICS_FILE
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.state import replay
from tiny_run import START, run, tuner


def test_deleting_the_lock_lets_no_second_writer_in(tmp_path):
    with tuner(tmp_path) as live:
        next(iter(live))
        (tmp_path / LOCK_FILE).unlink()
        with pytest.raises(JournalError, match=r"journal\.bin: another writer has this run"):
            tuner(tmp_path)
        with pytest.raises(JournalError, match="another writer"):
            rewind(tmp_path, 0)
        next(iter(live))
    tuner(tmp_path).close()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_another_folder_with_the_same_journal_lets_no_second_writer_in(tmp_path, link):
    other = tmp_path / "other"
    other.mkdir()
    with tuner(tmp_path / "run") as live:
        next(iter(live))
        link(tmp_path / "run" / JOURNAL_FILE, other / JOURNAL_FILE)
        (tmp_path / "alias").symlink_to(tmp_path / "run")
        for folder in (other, tmp_path / "alias"):
            with pytest.raises(JournalError, match="another writer has this run"):
                tuner(folder)


def test_a_folder_can_be_locked_again_after_each_operation(tmp_path, whole):
    """Operations replace the journal while they hold its lock."""
    branch(whole[0], tmp_path)
    for _ in range(2):
        compact(tmp_path, START)
        rewind(tmp_path, 60)
        RunLock(tmp_path).release()
    lock = RunLock(tmp_path)
    shutil.copy(tmp_path / JOURNAL_FILE, tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / JOURNAL_FILE)
    lock.cover_journal()
    (tmp_path / LOCK_FILE).unlink()
    with pytest.raises(JournalError, match="another writer"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


@pytest.mark.parametrize("gone", [JOURNAL_FILE, "."])
def test_a_journal_deleted_while_its_run_goes_on_is_an_error(tmp_path, monkeypatch, gone):
    folder = tmp_path / "run"
    monkeypatch.setattr("seedtune.runtime.journal.file.SYNC_SECONDS", 0)
    with tuner(folder) as live:
        steps = iter(live)
        next(steps)
        if gone == ".":
            shutil.rmtree(folder)
        else:
            (folder / gone).unlink()
        with pytest.raises(JournalError, match=r"run/journal\.bin: was deleted or replaced"):
            next(steps)
        with pytest.raises(JournalError, match="open the run again"):
            next(iter(live))


def test_a_journal_replaced_while_its_run_goes_on_is_an_error(tmp_path, whole):
    with tuner(tmp_path) as live:
        next(iter(live))
        shutil.copy(whole[0] / JOURNAL_FILE, tmp_path / "copy")
        os.replace(tmp_path / "copy", tmp_path / JOURNAL_FILE)
        with pytest.raises(JournalError, match=r"journal\.bin: was deleted or replaced while"):
            list(live)
    assert replay(tmp_path, START).sha256 == whole[1]


def test_a_forked_child_cannot_write(tmp_path, whole):
    with tuner(tmp_path) as live:
        steps = iter(live)
        next(steps)
        size = (tmp_path / JOURNAL_FILE).stat().st_size
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                live._run.commit(Note("from the child"))
            except JournalError as error:
                os.write(writer, str(error).encode())
            live.close()
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        message = os.read(reader, 1000).decode()
        os.close(reader)
        assert f"was opened by process {os.getpid()}, this one was forked from it" in message
        assert (tmp_path / JOURNAL_FILE).stat().st_size == size
        with pytest.raises(JournalError, match="another writer"):  # the child's close freed nothing
            tuner(tmp_path)
        list(live)
        assert live.values.sha256 == whole[1]


def test_a_run_is_private(tmp_path):
    before = os.umask(0)
    try:
        run(tmp_path / "run")
        rewind(tmp_path / "run", 30)
        compact(tmp_path / "run", START)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    for file in (tmp_path / "run").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


_WINDOWS = "import sys, like_windows; like_windows.become()\n"


def _windows(script, *arguments):
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", _WINDOWS + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_without_fcntl_all_modules_import_and_a_run_is_the_same(tmp_path, whole):
    script = """
import importlib, pathlib
from pathlib import Path
import seedtune.runtime
root = Path(seedtune.runtime.__file__).parent
for file in root.rglob("*.py"):
    if file.parent.name != "engines" and file.name != "__init__.py":
        importlib.import_module(".".join(["seedtune.runtime", *file.relative_to(root).with_suffix("").parts]))
from tiny_run import run, tuner
from seedtune.runtime.errors import JournalError
with tuner(Path(sys.argv[1])) as live:
    next(iter(live))
    try:
        tuner(Path(sys.argv[1]))
    except JournalError as error:
        print(error)
print(run(Path(sys.argv[1])))
"""  # noqa: E501
    done = _windows(script, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    refused, sha256 = done.stdout.splitlines()
    assert "journal.lock: another writer has this run (process " in refused
    assert sha256 == whole[1]
    assert replay(tmp_path / "run", START).sha256 == whole[1]


def test_without_fcntl_the_lock_holds_between_processes_and_dies_with_one(tmp_path):
    script = """
from pathlib import Path
from seedtune.runtime.errors import JournalError
from seedtune.runtime.journal.lock import RunLock
try:
    RunLock(Path(sys.argv[1]))
except JournalError as error:
    sys.exit(str(error))
"""

    def hold():
        lock = RunLock(tmp_path)
        refused = _windows(script, tmp_path)
        (tmp_path / "refused").write_text(refused.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
        lock.release()

    assert run_and_kill(hold, None)
    assert "another writer has this run" in (tmp_path / "refused").read_text()
    assert _windows(script, tmp_path).returncode == 0


def test_the_metrics_of_a_forked_child_stay_out(tmp_path):
    with tuner(tmp_path) as live:
        next(iter(live))
        size = (tmp_path / METRICS_FILE).stat().st_size
        child = os.fork()
        if child == 0:
            live._metrics.append(kind="step", step=2, loss=0.5, seconds=0.1)
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / METRICS_FILE).stat().st_size == size

"""Kills, full and read-only disks, failing writes, two writers: nothing is lost."""

import errno
import os
import random
import signal
import time

import pytest
from fakes import FakeEngine
from faults import failing_writes, fill, read_only, run_and_kill, small_disk
from seedtune.runtime.errors import EngineError, JournalError
from seedtune.runtime.estimators.two_point import TwoPoint
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.format import Note
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.operations import branch
from seedtune.runtime.journal.run_folder import JOURNAL_FILE, METRICS_FILE
from seedtune.runtime.journal.state import replay
from tiny_run import START, K, run, tuner


def test_kill_9_at_random_moments_then_finish(tmp_path, whole):
    """Each cycle kills a real process once or more; SEEDTUNE_KILLS sets how many kills in all."""
    wanted = int(os.environ.get("SEEDTUNE_KILLS", "100"))
    rng = random.Random(0)
    began = time.monotonic()
    run(tmp_path / "timing")
    duration = time.monotonic() - began
    kills = runs = 0
    while kills < wanted:
        runs += 1
        folder = tmp_path / f"run{runs}"
        while run_and_kill(lambda: run(folder), rng.uniform(0, duration)):  # noqa: B023
            kills += 1
        done = replay(folder, START)
        assert done.history.steps == 60 and done.sha256 == whole[1], f"after kill {kills}"


@pytest.mark.parametrize("cut", [*range(1, 45, 3), 200])
def test_a_torn_tail_is_cut_reported_and_made_up_for(tmp_path, whole, cut):
    branch(whole[0], tmp_path)
    size = (tmp_path / JOURNAL_FILE).stat().st_size
    os.truncate(tmp_path / JOURNAL_FILE, size - cut)
    journal = read_journal(tmp_path)
    assert size - cut - 3 - 8 - 255 <= journal.end <= size - cut
    with tuner(tmp_path) as live:
        assert live.cut_bytes == journal.torn_bytes == size - cut - journal.end
    assert run(tmp_path) == whole[1]


def test_a_killed_writer_keeps_no_lock_even_if_it_had_forked(tmp_path):
    pids = tmp_path / "pid"

    def work():
        with tuner(tmp_path / "run") as live:
            next(iter(live))
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            pids.write_text(str(child))
            time.sleep(30)

    assert run_and_kill(work, 1.0)
    try:
        tuner(tmp_path / "run").close()
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_full_disk_stops_at_a_whole_record_and_resumes(tmp_path, whole):
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        folder = disk / "run"
        with tuner(folder) as live:
            for report in live:
                if report.step == 5:
                    break
            ballast = fill(disk)
            (folder / METRICS_FILE).unlink()
            (folder / METRICS_FILE).symlink_to("/dev/null")  # leave the last block to the journal
            before = live.values.sha256
            with pytest.raises(JournalError, match=r"journal\.bin: cannot be written \(No space"):
                while True:
                    live._run.commit(Note("x" * 250))
            assert live.values.sha256 == before
            with pytest.raises(JournalError):
                next(iter(live))
        journal = read_journal(folder)
        assert journal.torn_bytes == 0
        assert replay(folder, START).sha256 == before
        ballast.unlink()
        assert run(folder) == whole[1]


def test_a_disk_full_from_the_start_is_an_error(tmp_path):
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        fill(disk)
        with pytest.raises(JournalError, match="No space left") as caught:
            tuner(disk / "run")
        assert "run" in str(caught.value) and not list(disk.rglob("*.seedtune-work"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("partial", [0, 1, 3])
def test_writes_that_fail_half_way_leave_whole_records(tmp_path, whole, monkeypatch, code, partial):
    with tuner(tmp_path) as live:
        for report in live:
            if report.step == 7:
                break
        before, size = live.values.sha256, (tmp_path / JOURNAL_FILE).stat().st_size
        with failing_writes(monkeypatch, code, partial):
            with pytest.raises(JournalError, match=os.strerror(code)) as caught:
                list(live)
            assert str(tmp_path / JOURNAL_FILE) in str(caught.value)
        assert (tmp_path / JOURNAL_FILE).stat().st_size == size
        assert live.values.sha256 == before
    assert run(tmp_path) == whole[1]


def test_a_read_only_folder_is_an_error_but_can_be_read(tmp_path):
    folder = tmp_path / "run"
    run(folder)
    with read_only(folder):
        with pytest.raises(JournalError, match=r"journal\.lock: cannot write here \(Read-only"):
            tuner(folder)
        replay(folder, START)
    with read_only(tmp_path), pytest.raises(JournalError, match="new: cannot be made"):
        tuner(tmp_path / "new")


def test_a_failing_sync_stops_the_run(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("seedtune.runtime.journal.file.SYNC_SECONDS", 0)
    with tuner(tmp_path) as live:
        steps = iter(live)
        next(steps)

        def fsync(fd):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(JournalError, match="Input/output error"):
                next(steps)
        assert replay(tmp_path, START).sha256 == live.values.sha256
    assert run(tmp_path) == whole[1]


def test_metrics_are_advisory(tmp_path, whole):
    with tuner(tmp_path) as live:
        for report in live:
            if report.step == 7:
                break
    with open(tmp_path / METRICS_FILE, "ab") as file:
        file.write(b'{"kind":"step","step":8,"lo')
    assert run(tmp_path) == whole[1]
    assert len([x for x in read_metrics(tmp_path) if x["kind"] == "step"]) == 60
    (tmp_path / METRICS_FILE).unlink()
    assert run(tmp_path) == whole[1]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, EngineError])
def test_an_exception_from_the_engine_leaves_the_run_as_it_was(tmp_path, whole, interrupt):
    class Failing(FakeEngine):
        def score(self, *arguments, **how):
            if len(self.calls) == 9:
                self.calls.append(((0,), 0))
                raise interrupt("out of memory")
            return super().score(*arguments, **how)

    with tuner(tmp_path, engine=Failing(K)) as live:
        with pytest.raises(interrupt):
            list(live)
        assert replay(tmp_path, START).sha256 == live.values.sha256
        list(live)
        assert live.values.sha256 == whole[1]


def test_an_interrupt_between_record_and_update_takes_no_further_step(tmp_path, whole, monkeypatch):
    with tuner(tmp_path) as live:
        steps = iter(live)
        next(steps)
        with monkeypatch.context() as patch:
            patch.setattr(TwoPoint, "apply", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(steps)
        with pytest.raises(JournalError, match="interrupted while recording; open it again"):
            list(live)
    assert run(tmp_path) == whole[1]


def _interrupted(*arguments, **more):
    raise KeyboardInterrupt

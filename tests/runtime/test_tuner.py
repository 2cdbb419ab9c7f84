"""The loop: learns, resumes to the bit, ships the best step, guards, budgets, faults."""

import errno
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
from fakes import BOUNDS, FakeEngine, FakeTask, fake_examples, fake_start
from faults import NanEngine, failing_writes, fill, read_only, run_and_kill, small_disk
from seedtune.runtime.budget import Budget, Control, signals
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.journal import JOURNAL_FILE, Durability, read_journal
from seedtune.runtime.journal_format import Skip
from seedtune.runtime.metrics import METRICS_FILE, read_metrics
from seedtune.runtime.replay import replay
from seedtune.runtime.settings import Settings
from seedtune.runtime.start import Start, values_sha256
from seedtune.runtime.tuner import Tuner

K = 64
START = fake_start(K)
ENGINE = FakeEngine(K)
TASK = FakeTask()
TRAIN = fake_examples(64)
HELD_OUT = fake_examples(48, seed=1)
SETTINGS = Settings(seed=3, steps=60, batch_size=8, lr=0.2, eps=0.01, eval_every=20)


def tuner(folder, **changes) -> Tuner:
    arguments = {
        "engine": ENGINE,
        "start": START,
        "task": TASK,
        "train": TRAIN,
        "settings": SETTINGS,
        "eval_examples": HELD_OUT,
        **changes,
    }
    return Tuner(folder=folder, **arguments)


def run(folder, **changes) -> str:
    """Run to the end; the hash of the final values."""
    with tuner(folder, **changes) as live:
        for _ in live:
            pass
        return values_sha256(live.values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder)


def test_it_learns_and_reports(tmp_path):
    with tuner(tmp_path) as live:
        reports = list(live)
        assert [r.step for r in reports] == list(range(1, 61))
        assert [r.step for r in reports if r.evaluation] == [20, 40, 60]
        assert reports[-1].forwards == 120 and live.stop_reason == "all 60 steps done"
        assert all(np.isclose(r.loss, np.mean(r.losses)) and len(r.losses) == 2 for r in reports)
        first, last = live.history.evaluations[0], live.history.evaluations[-1]
        assert first.step == 0 and last.step == 60
        assert last.loss < first.loss - 0.1 and last.metric > first.metric
        tuned = live.tuned()
        assert tuned.step == live.history.best.step > 0 and "ships" in tuned.message
    lines = read_metrics(tmp_path)
    assert [x["step"] for x in lines if x["kind"] == "evaluation"] == [0, 20, 40, 60]
    assert [x["loss"] for x in lines if x["kind"] == "step"] == [r.loss for r in reports]


def test_both_probes_go_through_one_call(tmp_path):
    engine = FakeEngine(K)
    with tuner(tmp_path, engine=engine, eval_examples=None) as live:
        next(iter(live))
    assert [call[1] for call in engine.calls] == [2]


def test_one_probe_programs_take_them_one_by_one_with_the_same_result(tmp_path, whole):
    start = Start(START.values, START.bundle_sha256, BOUNDS.__class__(1, 16, 8, 16, 2))
    engine = FakeEngine(K)
    assert run(tmp_path, start=start, engine=engine) == whole[1]
    assert {call[1] for call in engine.calls} == {1}


def test_batches_beyond_the_bounds_are_split(tmp_path):
    start = Start(START.values, START.bundle_sha256, BOUNDS.__class__(2, 3, 8, 16, 2))
    engine = FakeEngine(K)
    with tuner(tmp_path, start=start, engine=engine, eval_examples=None) as live:
        report = next(iter(live))
    assert [call[0][0] for call in engine.calls] == [3, 3, 2]
    with tuner(tmp_path / "b", eval_examples=None) as live:
        assert np.isclose(next(iter(live)).loss, report.loss, rtol=1e-6)


@pytest.mark.parametrize("stops", [[1], [7, 19, 20], [20, 40, 59]])
def test_interrupted_equals_uninterrupted(tmp_path, whole, stops):
    for stop in stops:
        with tuner(tmp_path) as live:
            for report in live:
                if report.step == stop:
                    break
    assert run(tmp_path, settings=None) == whole[1]
    assert replay(tmp_path, START).sha256 == whole[1]
    ours, theirs = read_journal(tmp_path), read_journal(whole[0])
    assert [p.record for p in ours.records] == [p.record for p in theirs.records]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_replay_equals_live(tmp_path, schedule, noise):
    settings = Settings(
        seed=9, steps=30, batch_size=4, lr=0.1, eps=0.02, schedule=schedule, warmup=5, noise=noise
    )
    assert run(tmp_path, settings=settings) == replay(tmp_path, START).sha256


def test_best_values_are_those_of_the_best_step_after_resuming_too(tmp_path):
    with tuner(tmp_path, settings=Settings(steps=60, lr=3.0, eps=0.01, eval_every=5)) as live:
        states = {0: START.values}
        for report in live:
            states[report.step] = live.values.copy()
        tuned = live.tuned()
        assert 0 < tuned.step < 60
        assert (tuned.values == states[tuned.step]).all()
    with tuner(tmp_path, settings=None) as again:
        resumed = again.tuned()
        assert resumed.step == tuned.step and (resumed.values == tuned.values).all()
        assert list(again) == []


def test_a_run_that_never_beats_the_start_ships_the_start(tmp_path):
    worse = NegatedTask()
    with tuner(tmp_path, task=worse, settings=SETTINGS) as live:
        list(live)
        tuned = live.tuned()
    assert tuned.step == 0 and (tuned.values == START.values).all()
    assert "beat the start: the start ships" in tuned.message


class NegatedTask(FakeTask):
    """Trains towards the wrong answer; evaluation judges by the right one."""

    def losses(self, logp, batch):
        losses = super().losses(logp, batch)
        return 1.0 - losses if len(logp) == 2 else losses


def test_without_held_out_examples_the_last_values_ship(tmp_path):
    with tuner(tmp_path, eval_examples=None) as live:
        list(live)
        tuned = live.tuned()
        assert tuned.step == 60 and tuned.loss is None and "none was evaluated" in tuned.message
        with pytest.raises(TuningError, match="no held-out examples"):
            live.evaluate()


# Resuming with something else


def test_other_settings_are_refused_or_recorded(tmp_path):
    with tuner(tmp_path) as live:
        next(iter(live))
    other = Settings(**{**SETTINGS.to_dict(), "lr": 0.01})
    with pytest.raises(TuningError, match=r"the run has lr=0\.2, not 0\.01; give the same"):
        tuner(tmp_path, settings=other)
    with tuner(tmp_path, settings=other, allow_changes=True) as live:
        reports = list(live)
        assert reports[0].lr == 0.01 and live.history.changes == [(1, "lr", 0.01)]
        final = values_sha256(live.values)
    assert replay(tmp_path, START).sha256 == final


def test_more_steps_are_always_allowed(tmp_path):
    run(tmp_path)
    more = Settings(**{**SETTINGS.to_dict(), "steps": 80})
    final = run(tmp_path, settings=more)
    assert run(tmp_path / "at once", settings=more) == final == replay(tmp_path, START).sha256


def test_other_data_other_bundle_other_estimator_are_refused(tmp_path):
    with tuner(tmp_path) as live:
        next(iter(live))
    with pytest.raises(TuningError, match="train_sha256"):
        tuner(tmp_path, train=TRAIN[1:])
    with pytest.raises(TuningError, match=r"eval_sha256=.*not None"):
        tuner(tmp_path, eval_examples=None)
    with pytest.raises(JournalError, match=r"belongs to bundle bbbb.*not cccc"):
        tuner(tmp_path, start=Start(START.values, "c" * 64, BOUNDS))
    with pytest.raises(JournalError, match="values are not those"):
        tuner(tmp_path, start=fake_start(K, seed=1))
    with pytest.raises(JournalError, match="has 64 values, the bundle 32"):
        tuner(tmp_path, start=fake_start(32))
    other = Settings(**{**SETTINGS.to_dict(), "noise": "gaussian"})
    with pytest.raises(TuningError, match="noise=rademacher, not gaussian; start or branch"):
        tuner(tmp_path, settings=other, allow_changes=True)
    with tuner(tmp_path, train=TRAIN[1:], allow_changes=True) as live:
        list(live)


def test_no_examples_is_an_error(tmp_path):
    with pytest.raises(TuningError, match="no training examples"):
        tuner(tmp_path, train=[])


# Guards


@pytest.mark.parametrize("probe", [None, 0, 1])
def test_one_nan_is_skipped_and_leaves_the_values_alone(tmp_path, probe):
    engine = NanEngine(ENGINE, lambda call: call == 5, probe=probe)
    with tuner(tmp_path, engine=engine, eval_examples=None) as live:
        before = []
        for report in live:
            if report.step == 5:
                assert report.skipped == "loss not finite" and report.scalars == ()
                assert (live.values == before[-1]).all()
            else:
                assert report.skipped is None and not (before and (live.values == before[-1]).all())
            before.append(live.values.copy())
        assert live.history.skipped == 1
        final = values_sha256(live.values)
    assert replay(tmp_path, START).sha256 == final


def test_nan_in_all_stops_with_advice_and_can_be_resumed(tmp_path, whole):
    engine = NanEngine(ENGINE, lambda call: call > 3)
    with tuner(tmp_path, engine=engine, eval_examples=None) as live:
        with pytest.raises(TuningError, match=r"10 steps in a row .* lower lr") as caught:
            list(live)
        assert "\n" not in str(caught.value) and live.history.steps == 13
        assert np.isfinite(live.values).all()
    skips = [p.record for p in read_journal(tmp_path).records if isinstance(p.record, Skip)]
    assert len(skips) == 10
    with tuner(tmp_path, eval_examples=None) as live:
        assert len(list(live)) == 47


@pytest.mark.parametrize("eval_examples", [None, HELD_OUT])
def test_a_loss_jump_is_skipped(tmp_path, eval_examples):
    with tuner(tmp_path, task=JumpyTask(4), eval_examples=eval_examples) as live:
        skipped = [(r.step, r.skipped) for r in live if r.skipped]
    assert skipped == [(4, "loss jump")]


class JumpyTask(FakeTask):
    """Both probes' losses of one batch are twenty times as high."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def losses(self, logp, batch):
        losses = super().losses(logp, batch)
        if len(logp) == 2:
            self.at -= 1
            if self.at == 0:
                return losses * 20
        return losses


def test_a_runaway_scalar_is_skipped(tmp_path):
    class Runaway(FakeTask):
        calls = 0

        def losses(self, logp, batch):
            self.calls += 1
            losses = super().losses(logp, batch)
            if self.calls == 30:
                losses[0] += 0.5
            return losses

    with tuner(tmp_path, task=Runaway(), eval_examples=None) as live:
        skipped = [(r.step, r.skipped) for r in live if r.skipped]
    assert skipped == [(30, "runaway step")]


def test_a_resumed_run_skips_what_an_uninterrupted_one_skips(tmp_path):
    final = {}
    for stop in (None, 25, 35):
        folder = tmp_path / str(stop)
        engine = NanEngine(ENGINE, lambda call: call == 30)
        if stop:
            with tuner(folder, engine=engine, eval_examples=None) as live:
                for report in live:
                    if report.step == stop:
                        break
        final[stop] = run(folder, engine=engine, eval_examples=None)
    assert len(set(final.values())) == 1


# Budgets, pauses, signals


def test_a_forward_budget_stops_and_evaluates(tmp_path, whole):
    with tuner(tmp_path, budget=Budget(forwards=31)) as live:
        assert len(list(live)) == 15
        assert live.stop_reason == "budget of 31 forwards"
        assert [e.step for e in live.history.evaluations] == [0, 15]
    assert run(tmp_path) == whole[1]


def test_a_time_budget_stops(tmp_path):
    class Slow(FakeEngine):
        def score(self, *arguments):
            time.sleep(0.02)
            return super().score(*arguments)

    budget = Budget(seconds=0.2)
    with tuner(tmp_path, engine=Slow(K), budget=budget, eval_examples=None) as live:
        assert 3 <= len(list(live)) <= 10
        assert live.stop_reason == "time budget of 0.2 s"


def test_a_device_callback_stops_with_its_reason(tmp_path, whole):
    asked = []

    def battery() -> str | None:
        asked.append(1)
        return "battery below 20 %" if len(asked) > 10 else None

    with tuner(tmp_path, budget=Budget(check=battery)) as live:
        assert len(list(live)) == 10
        assert live.stop_reason == "battery below 20 %"
        assert live.history.ends == [(10, "battery below 20 %")]
    assert run(tmp_path) == whole[1]


def test_pause_and_proceed_by_call(tmp_path, whole):
    control = Control()
    with tuner(tmp_path, control=control) as live:
        steps = iter(live)
        next(steps)
        control.pause()
        threading.Timer(0.3, control.proceed).start()
        began = time.monotonic()
        next(steps)
        assert time.monotonic() - began > 0.25
        control.stop()
        assert list(steps) == [] and live.stop_reason == "stopped by the app"
    assert run(tmp_path) == whole[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_leave_a_resumable_run(tmp_path, whole, number):
    before = signal.getsignal(number)
    control = Control()
    with tuner(tmp_path, control=control) as live, signals(control):
        for report in live:
            if report.step == 9:
                os.kill(os.getpid(), number)
        assert live.stop_reason == signal.Signals(number).name
        assert live.history.steps == 9
    assert signal.getsignal(number) is before
    assert run(tmp_path) == whole[1]


def test_signals_pause_and_continue(tmp_path):
    control = Control()
    with tuner(tmp_path, control=control, eval_examples=None) as live, signals(control):
        for report in live:
            if report.step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
                assert control.paused
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        assert not control.paused and live.history.steps == 60


# Faults


def test_kill_9_at_random_moments_then_finish(tmp_path, whole):
    """Each cycle kills a real process once or more; SEEDTUNE_KILLS sets how many kills in all."""
    wanted = int(os.environ.get("SEEDTUNE_KILLS", "500"))
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


def test_two_writers(tmp_path):
    with tuner(tmp_path) as live:
        next(iter(live))
        with pytest.raises(JournalError, match=rf"another writer .*process {os.getpid()}\)"):
            tuner(tmp_path)
        replay(tmp_path, START)  # reading needs no lock
    tuner(tmp_path).close()


def test_a_killed_writer_keeps_no_lock_even_if_it_had_forked(tmp_path):
    pids = tmp_path / "pid"

    def work() -> None:
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
            before = values_sha256(live.values)
            with pytest.raises(JournalError, match=r"journal\.bin: cannot be written \(No space"):
                while True:
                    live.note("x" * 250)
            assert values_sha256(live.values) == before
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
        assert "run" in str(caught.value) and not list(disk.rglob("*.part"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("partial", [0, 1, 3])
def test_writes_that_fail_half_way_leave_whole_records(tmp_path, whole, monkeypatch, code, partial):
    with tuner(tmp_path) as live:
        for report in live:
            if report.step == 7:
                break
        before, size = values_sha256(live.values), (tmp_path / JOURNAL_FILE).stat().st_size
        with failing_writes(monkeypatch, code, after=0, partial=partial):
            with pytest.raises(JournalError, match=os.strerror(code)) as caught:
                list(live)
            assert str(tmp_path / JOURNAL_FILE) in str(caught.value)
        assert (tmp_path / JOURNAL_FILE).stat().st_size == size
        assert values_sha256(live.values) == before
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
    with tuner(tmp_path, durability=Durability(records=1)) as live:
        steps = iter(live)
        next(steps)

        def fsync(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(JournalError, match="Input/output error"):
                next(steps)
        assert replay(tmp_path, START).sha256 == values_sha256(live.values)
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

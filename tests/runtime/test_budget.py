"""Budgets, pauses and signals end or hold the loop between two steps."""

import os
import signal
import threading
import time

import pytest
from fakes import FakeEngine
from seedtune.runtime.journal.state import replay
from seedtune.runtime.tuning import tuner as module
from seedtune.runtime.tuning.budget import Budget, Control, signals
from tiny_run import START, K, run, tuner


def test_a_forward_budget_stops_and_evaluates(tmp_path, whole):
    with tuner(tmp_path, budget=Budget(forwards=31)) as live:
        assert len(list(live)) == 15
        assert live.stop_reason == "budget of 31 forwards"
        assert [e.step for e in live.history.evaluations] == [0, 15]
    assert run(tmp_path) == whole[1]


def test_a_time_budget_stops(tmp_path):
    class Slow(FakeEngine):
        def score(self, *arguments, **how):
            time.sleep(0.02)
            return super().score(*arguments, **how)

    budget = Budget(seconds=0.2)
    with tuner(tmp_path, engine=Slow(K), budget=budget, eval_examples=None) as live:
        assert 3 <= len(list(live)) <= 10
        assert live.stop_reason == "time budget of 0.2 s"


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


def test_a_pause_is_no_active_time_not_even_in_an_evaluation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    class Paused(Control):
        def wait(self):
            now[0] += 1000

    class Slow(FakeEngine):
        def score(self, *arguments, **how):
            now[0] += 1
            return super().score(*arguments, **how)

    with tuner(tmp_path, control=Paused(), engine=Slow(K)) as live:
        next(iter(live))
        assert 3 < live.seconds < 50 < 3000 <= now[0]  # an evaluation of three passes, and a step


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


def test_a_stop_does_not_wait_for_an_evaluation_and_resuming_makes_up_for_it(tmp_path, whole):
    control, seen = Control(), []

    def on_evaluation(done, total):
        seen.append((done, total))
        if len(seen) == 4:  # the first batch of the evaluation after step 20
            control.stop("SIGTERM")

    with tuner(tmp_path, control=control, on_evaluation=on_evaluation) as live:
        assert [r.step for r in live if r.evaluation is None] == list(range(1, 21))
        assert live.stop_reason == "SIGTERM" and len(live.history.evaluations) == 1
    assert seen == [(16, 48), (32, 48), (48, 48), (16, 48)]
    assert run(tmp_path) == whole[1]
    steps = [e.step for e in replay(tmp_path, START).history.evaluations]
    assert steps == [0, 20, 40, 60]


def test_it_rests_while_a_condition_asks_for_it_and_says_why(tmp_path, whole, caplog):
    caplog.set_level("INFO", "seedtune")
    reasons, heard = [None, "not charging", "not charging", "hot", None], []

    def rest():
        return reasons.pop(0) if reasons else None

    control = Control(rest, every=0, on_rest=heard.append)
    with tuner(tmp_path, control=control) as live:
        list(live)
        assert live.stop_reason == "all 60 steps done"
    assert heard == ["not charging", "hot", ""]
    told = [each.message for each in caplog.records]
    assert told.index("waiting: hot") < told.index("going on")
    assert run(tmp_path) == whole[1]


def test_a_condition_is_asked_as_often_as_it_was_told_to_be(tmp_path, whole):
    asked = []
    control = Control(lambda: asked.append(1), every=1000)
    with tuner(tmp_path, control=control) as live:
        list(live)
    assert len(asked) == 1


def test_what_rests_can_be_stopped(tmp_path, whole):
    control = Control(lambda: "never", every=0.01)
    threading.Timer(0.3, control.stop).start()
    with tuner(tmp_path, control=control, eval_examples=None) as live:
        assert list(live) == [] and live.stop_reason == "stopped by the app"
        control.stop("and once more")
        assert control.stop_reason == live.stop_reason

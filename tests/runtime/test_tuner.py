"""The loop: learns, resumes to the bit, ships the best step, refuses another run's inputs."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from fakes import BOUNDS, FakeEngine, FakeTask, LostTask, fake_start
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.settings import options_of
from seedtune.runtime.tuning.budget import Budget, Control
from tiny_run import CARRIED, SETTINGS, START, TRAIN, K, rates, run, suited, tuner


def test_it_learns_and_reports(tmp_path):
    with tuner(tmp_path) as live:
        reports = list(live)
        assert [r.step for r in reports] == list(range(1, 61))
        assert [r.step for r in reports if r.evaluation] == [20, 40, 60]
        assert reports[-1].forwards == 120 and live.stop_reason == "all 60 steps done"
        assert all(np.isclose(r.loss, np.mean(r.losses)) and len(r.losses) == 2 for r in reports)
        first, last = live.history.evaluations[0], live.history.evaluations[-1]
        assert first.step == 0 and last.step == 60
        assert last.loss < first.loss - 0.08 and last.metric > first.metric
        tuned = live.tuned()
        assert tuned.step == live.history.best.step > 0 and "ships" in tuned.message
    lines = read_metrics(tmp_path)
    assert [x["step"] for x in lines if x["kind"] == "evaluation"] == [0, 20, 40, 60]
    assert [x["loss"] for x in lines if x["kind"] == "step"] == [r.loss for r in reports]


def test_all_seeds_of_a_step_take_one_pass_as_far_as_the_program_has_room(tmp_path):
    ends = []
    for probes, passes in ((8, [8]), (6, [6, 2]), (2, [2, 2, 2, 2])):
        engine = FakeEngine(K)
        start = replace(START, bounds=replace(BOUNDS, probes=probes))
        asked = {"settings": suited("two-point", seeds=4, steps=3), "eval_examples": None}
        ends.append(run(tmp_path / str(probes), engine=engine, start=start, **asked))
        assert [call[1] for call in engine.calls] == 3 * passes
    assert len(set(ends)) == 1


@pytest.mark.parametrize(
    "estimator", [name for name in CARRIED if name not in ("readout", "text-head")]
)
@pytest.mark.parametrize("probes", [1, 3, 16])
def test_probes_beyond_the_bounds_take_several_passes_with_the_same_result(
    tmp_path, estimator, probes
):
    settings = suited(estimator, seeds=4, groups=4, steps=6)
    hashes = set()
    for at_once in (probes, 2):
        engine = FakeEngine(K)
        start = replace(START, bounds=replace(BOUNDS, probes=at_once))
        folder = tmp_path / str(at_once)
        hashes.add(run(folder, settings=settings, start=start, engine=engine, eval_examples=None))
        assert max(call[1] for call in engine.calls) <= at_once
        assert replay(folder, START).sha256 in hashes
    assert len(hashes) == 1


def test_batches_beyond_the_bounds_are_split(tmp_path):
    start = Start(START.values, START.bundle_sha256, BOUNDS.__class__(2, 1, 16, 16, 2))
    engine = FakeEngine(K)
    with tuner(tmp_path, start=start, engine=engine, eval_examples=None) as live:
        report = next(iter(live))
    shapes = [call[0] for call in engine.calls]
    assert len(shapes) > 1 and sum(rows for rows, _ in shapes) == 8
    assert all(rows * length <= 16 for rows, length in shapes)
    assert sorted(length for _, length in shapes) == [length for _, length in shapes]
    start = Start(START.values, START.bundle_sha256, BOUNDS.__class__(2, 16, 8, 5, 2))
    engine = FakeEngine(K)
    with tuner(tmp_path / "c", start=start, engine=engine, eval_examples=None) as live:
        next(iter(live))
    assert [call[0][0] for call in engine.calls] == [5, 3]
    with tuner(tmp_path / "b", eval_examples=None) as live:
        assert np.isclose(next(iter(live)).loss, report.loss, rtol=1e-6)


def test_best_values_are_those_of_the_best_step_after_resuming_too(tmp_path):
    settings = SETTINGS | {"eval_every": 5}
    with tuner(tmp_path, settings=settings, task=LostTask()) as live:
        states = {0: Values(START.values).sha256}
        for report in live:
            states[report.step] = live.values.sha256
        tuned = live.tuned()
        assert 0 < tuned.step < 60
        assert tuned.values.sha256 == states[tuned.step]
    with tuner(tmp_path, settings=None) as again:
        resumed = again.tuned()
        assert resumed.step == tuned.step and resumed.values.sha256 == tuned.values.sha256
        assert list(again) == []


@pytest.mark.parametrize("estimator", CARRIED)
def test_what_was_left_open_resumes_as_it_began(tmp_path, estimator):
    asked = {"estimator": estimator, "batch_size": 8, "steps": 4, **rates(estimator)}
    run(tmp_path, settings=asked)
    own = dict.fromkeys(options_of(ESTIMATORS[estimator].options))
    for again in (asked, {**asked, **own}):
        with tuner(tmp_path, settings=again) as live:
            assert live.history.changes == [] and list(live) == []


@pytest.mark.parametrize("estimator", CARRIED)
def test_another_estimator_is_refused_whatever_it_would_need(tmp_path, estimator):
    run(tmp_path, settings=suited(estimator, steps=1))
    for other in set(ESTIMATORS) - {estimator}:
        message = f"the run has estimator={estimator}, not {other}; give the same, or start"
        with pytest.raises(TuningError, match=message):
            tuner(tmp_path, settings={"estimator": other}, allow_changes=True)
        with pytest.raises(TuningError, match=message):
            tuner(tmp_path, settings=suited(other), allow_changes=True)


def test_a_run_that_never_beats_the_start_ships_the_start(tmp_path):
    worse = NegatedTask()
    with tuner(tmp_path, task=worse, settings=SETTINGS) as live:
        list(live)
        tuned = live.tuned()
    assert tuned.step == 0 and (tuned.values.sensitive == START.values).all()
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


def test_other_settings_are_refused_or_recorded(tmp_path):
    with tuner(tmp_path) as live:
        next(iter(live))
    other = SETTINGS | {"lr": 0.01}
    with pytest.raises(TuningError, match=r"the run has lr=0\.2, not 0\.01; give the same"):
        tuner(tmp_path, settings=other)
    with tuner(tmp_path, settings=other, allow_changes=True) as live:
        reports = list(live)
        assert reports[0].lr == 0.01 and live.history.changes == [(1, "lr", 0.01)]
        final = live.values.sha256
    assert replay(tmp_path, START).sha256 == final


def test_more_steps_are_always_allowed(tmp_path):
    run(tmp_path)
    more = SETTINGS | {"steps": 80}
    final = run(tmp_path, settings=more)
    assert run(tmp_path / "at once", settings=more) == final == replay(tmp_path, START).sha256


def test_other_data_other_bundle_other_estimator_are_refused(tmp_path):
    with tuner(tmp_path) as live:
        next(iter(live))
    first = TRAIN[0]
    for changes in (
        {"tokens": first.tokens + 1},
        {"positions": first.positions + 1},
        {"candidates": first.candidates + 1},
        {"gold": 1 - first.gold},
    ):
        with pytest.raises(TuningError, match="train_sha256"):
            tuner(tmp_path, train=[replace(first, **changes), *TRAIN[1:]])
    with pytest.raises(
        TuningError, match=r"other held-out rows than --data gives \(eval_sha256 .*--allow-changes"
    ):
        tuner(tmp_path, eval_examples=None)
    with pytest.raises(JournalError, match=r"belongs to bundle bbbb.*not cccc"):
        tuner(tmp_path, start=Start(START.values, "c" * 64, BOUNDS))
    with pytest.raises(JournalError, match="values are not those"):
        tuner(tmp_path, start=fake_start(K, seed=1))
    with pytest.raises(JournalError, match="has 64 values, the bundle 32"):
        tuner(tmp_path, start=fake_start(32))
    other = SETTINGS | {"seeds": 3}
    with pytest.raises(TuningError, match="seeds=1, not 3; give the same, or start"):
        tuner(tmp_path, settings=other, allow_changes=True)
    with tuner(tmp_path, train=TRAIN[1:], allow_changes=True) as live:
        list(live)


def test_no_examples_is_an_error(tmp_path):
    with pytest.raises(TuningError, match="no training examples"):
        tuner(tmp_path, train=[])


@pytest.mark.parametrize("step", [1, 8, 20])
def test_a_loop_that_was_left_evaluates_its_last_step(tmp_path, step):
    seen = []
    with tuner(tmp_path, on_evaluation=lambda done, total: seen.append((done, total))) as live:
        for report in live:
            if report.step == step:
                break
        before = len(seen)
        tuned = live.tuned()
        assert live.history.evaluations[-1].step == step
        assert (len(seen) > before) == (step != 20)  # evaluated already
        assert live.tuned() == tuned and len(live.history.evaluations) == 2
        best = min(live.history.evaluations, key=lambda item: (-item.metric, item.loss))
        assert (tuned.step, tuned.loss) == (best.step, best.loss)
    assert run(tmp_path, settings=None) == run(tmp_path / "whole")


@pytest.mark.parametrize("by", ["control", "check"])
def test_a_stop_leaves_at_once_and_says_what_was_not_evaluated(tmp_path, by):
    control = Control()
    hot = Budget(check=lambda: "too hot" if live.history.steps == 8 else None)
    with tuner(tmp_path, control=control, budget=hot if by == "check" else None) as live:
        for report in live:
            if by == "control" and report.step == 8:
                control.stop("battery low")
        tuned = live.tuned()
        assert [item.step for item in live.history.evaluations] == [0]
    assert tuned.step == 0 and "step 8, the last, was not evaluated" in tuned.message


def test_a_report_is_a_line_and_progress_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="seedtune"), tuner(tmp_path) as live:
        reports = list(live)
        tuned = live.tuned()
    assert str(reports[19]).startswith(f"step 20: loss {reports[19].loss:.4g}, held-out loss ")
    assert all(len(repr(item)) < 250 and "array" not in repr(item) for item in (*reports, tuned))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 6 and told[0].endswith("from step 0 to 60")
    assert "step 20, held-out loss" in told[2] and told[-1].endswith("all 60 steps done")

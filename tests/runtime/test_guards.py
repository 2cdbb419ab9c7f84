"""Guards: losses that are not finite, jumps and runaways are skipped, then the run stops."""

import numpy as np
import pytest
from fakes import FakeTask
from faults import NanEngine
from seedtune.runtime.errors import TuningError
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.format import Skip
from seedtune.runtime.journal.state import replay
from seedtune.runtime.tuning.budget import Budget
from tiny_run import ENGINE, HELD_OUT, START, run, tuner


@pytest.mark.parametrize("probe", [None, 0, 1])
def test_one_nan_is_skipped_and_leaves_the_values_alone(tmp_path, probe):
    engine = NanEngine(ENGINE, lambda call: call == 5, probe=probe)
    with tuner(tmp_path, engine=engine, eval_examples=None) as live:
        before = []
        for report in live:
            if report.step == 5:
                assert report.skipped == "loss not finite" and report.scalars == ()
                assert live.values.sha256 == before[-1]
            else:
                assert report.skipped is None and live.values.sha256 not in before[-1:]
            before.append(live.values.sha256)
        assert live.history.skipped == 1
        final = live.values.sha256
    assert replay(tmp_path, START).sha256 == final


def test_nan_in_all_stops_with_advice_and_can_be_resumed(tmp_path, whole):
    engine = NanEngine(ENGINE, lambda call: call > 3)
    with tuner(tmp_path, engine=engine, eval_examples=None) as live:
        with pytest.raises(TuningError, match=r"10 steps in a row .* lower lr") as caught:
            list(live)
        assert "\n" not in str(caught.value) and live.history.steps == 13
        assert np.isfinite(live.values.sensitive).all()
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

    def __init__(self, at):
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


def test_only_skips_in_a_row_stop_the_run(tmp_path):
    engine = NanEngine(ENGINE, lambda call: call % 10 > 0)  # nine in a row, then a good one
    with tuner(tmp_path, engine=engine, eval_examples=None) as live:
        assert len(list(live)) == 60
        assert live.history.skipped == 54


def test_evaluations_off_the_schedule_do_not_move_the_loss_guard(tmp_path):
    """A run that stopped for a budget, and evaluated there, must skip what any other skips."""
    limits = []
    for budget in (Budget(), Budget(forwards=26)):
        with tuner(tmp_path / str(len(limits)), budget=budget) as live:
            for report in live:
                if report.step == 13:
                    limits.append(live.history.loss_limit)
            if budget.forwards:
                assert live.history.evaluations[-1].step == 13
                limits.append(live.history.loss_limit)
    assert len(limits) == 3 and len(set(limits)) == 1

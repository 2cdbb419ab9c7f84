"""A readout: what it learns from, what it refuses, and the same bits after any interruption."""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import BOUNDS, FakeEngine, FakeTask, fake_context, fake_examples
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from seedtune.runtime import estimators
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import ESTIMATORS, RunContext, settings_of
from seedtune.runtime.estimators import readout as estimator_module
from seedtune.runtime.estimators.readout import ReadoutOptions
from seedtune.runtime.estimators.ridge_logistic import SHARES, Examples, fit
from seedtune.runtime.estimators.text_head_estimator import TextHeadOptions
from seedtune.runtime.estimators.two_point import TwoPointOptions
from seedtune.runtime.journal.file import JournalWriter, read_journal
from seedtune.runtime.journal.run_folder import JOURNAL_FILE
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring.answer_head import AnswerHead, observe
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.evaluation import evaluate, predict
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import (
    task_from_spec,
)
from seedtune.runtime.tuning.budget import Budget, Control
from tiny_bundle import TASK, tiny_tokenizer
from tiny_run import ENGINE, HELD_OUT, START, TRAIN, K, run, tuner

SETTINGS = {
    "seed": 3,
    "steps": 60,
    "batch_size": 4,
    "eval_every": 4,
    "estimator": "readout",
}
LABELS = FakeTask.labels
"""Rows, width and answers."""
ENTRIES = 15


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of 16 steps: its folder and the hash of its final values."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, run(folder, settings=SETTINGS)


def head_of(own, labels=LABELS):
    """Values of the fake bundle with an answer head."""
    return Values(START.values, AnswerHead(labels, 6, own))


def random_weights(seed):
    return head_of(np.random.default_rng(seed).standard_normal(ENTRIES).astype(np.float32))


class Surprising(FakeTask):
    """A hundredfold loss of training batch number ``at``."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def losses(self, logp, batch):
        self.at -= batch.examples == SETTINGS["batch_size"]
        surprise = self.at == 0 and batch.examples == SETTINGS["batch_size"]
        return super().losses(logp, batch) * (100 if surprise else 1)


class TestRun:
    def test_it_learns_with_one_forward_a_step(self, tmp_path):
        engine = FakeEngine(K)
        with tuner(tmp_path, settings=SETTINGS, engine=engine) as live:
            reports = list(live)
            first, last = live.history.evaluations[0], live.history.evaluations[-1]
            assert (live.values.sensitive == START.values).all()
            assert live.values.part.labels == LABELS and live.values.entries == K + ENTRIES
        assert last.loss < first.loss - 0.25 and last.metric > first.metric + 0.1
        assert [r.forwards for r in reports] == list(range(1, 17))
        early, late = (np.mean([r.loss for r in half]) for half in (reports[:8], reports[8:]))
        assert late < early / 2
        evaluations = 3  # of 48 examples in passes of 16: five, of which four know the states
        assert len(engine.calls) == 16 + evaluations
        assert {probes for _, probes in engine.calls} == {1}

    def test_it_ends_when_every_example_was_seen_once(self, tmp_path):
        with tuner(tmp_path, settings=SETTINGS) as live:
            assert len(list(live)) == 16 and live.stop_reason == "all 16 steps done"
        features = replay(tmp_path, START).estimator.state["features"]
        batch = FakeTask().collate(TRAIN)
        wanted = ENGINE.score(batch, START.values[None]).hidden[0].astype(np.float16)
        assert sorted(map(bytes, features)) == sorted(map(bytes, wanted))

    def test_the_weights_are_those_that_all_examples_ask_for(self, tmp_path):
        with tuner(tmp_path, settings=SETTINGS) as live:
            list(live)
            weights = live.values.part.own
        found, share = weights[:-1].reshape(2, 7), 1 + float(weights[-1])
        state = replay(tmp_path, START).estimator.state
        assert share in (1, *SHARES)
        inputs = np.concatenate([state["features"], np.ones((64, 1, 1))], axis=2)
        offset = np.float32(share) * state["offset"]
        seen = Examples(offset, inputs.astype(np.float32), state["gold"])
        wanted = fit(seen, float(state["ridge"][0]), np.zeros((2, 7), np.float32))
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()

    def test_the_oldest_examples_are_forgotten(self, tmp_path, monkeypatch):
        whole = run(tmp_path / "all", settings=SETTINGS)
        everything = replay(tmp_path / "all", START).estimator.state
        monkeypatch.setattr(estimator_module, "MEMORY", 20)
        live = run(tmp_path / "few", settings=SETTINGS)
        found = replay(tmp_path / "few", START)
        assert found.sha256 == live != whole
        for name in ("gold", "offset", "features"):
            assert (found.estimator.state[name] == everything[name][-20:]).all(), name

    def test_the_ridge_is_chosen_again_as_examples_grow_until_it_settles(
        self, tmp_path, monkeypatch
    ):
        chosen, plain = [], estimator_module.choose

        def watched(seen, *rest):
            chosen.append(len(seen.gold))
            return plain(seen, *rest)._replace(share=0.5)

        monkeypatch.setattr(estimator_module, "choose", watched)
        run(tmp_path / "a", settings=SETTINGS)
        assert chosen == [4, 8, 12, 16, 24, 32, 44, 60]
        chosen.clear()
        monkeypatch.setattr(estimator_module, "_SETTLED", 30)
        run(tmp_path / "b", settings=SETTINGS)
        assert chosen == [4, 8, 12, 16, 24, 32]
        assert replay(tmp_path / "b", START).values.part.share == 0.5

    @pytest.mark.parametrize("eval_examples", [None, HELD_OUT])
    def test_a_batch_that_surprises_is_learned_from(self, tmp_path, eval_examples):
        """No probe moved the values there: left out, it would teach nothing."""
        task = Surprising(4)
        with tuner(tmp_path, settings=SETTINGS, task=task, eval_examples=eval_examples) as live:
            reports = list(live)
        assert reports[3].loss > 10 * reports[0].loss
        assert [report.skipped for report in reports] == [None] * 16


class TestInterrupted:
    @given(st.data())
    @hypothesis_settings(deadline=None, max_examples=40)
    def test_a_journal_cut_at_any_byte_goes_on_to_the_same_bits(self, done, data):
        """What a kill at any moment leaves behind."""
        whole = (done[0] / JOURNAL_FILE).read_bytes()
        cut = data.draw(st.integers(read_journal(done[0]).header_end, len(whole) - 1))
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / JOURNAL_FILE).write_bytes(whole[:cut])
            assert run(Path(name), settings=None) == done[1]
            assert replay(name, START).sha256 == done[1]

    @pytest.mark.parametrize("how", ["stop", "check", "stop, then break"])
    def test_asked_at_any_step_it_answers_with_what_it_has(self, tmp_path, how):
        """Held-out states that this session has seen judge the last step at once; nobody who stops
        waits for them where it has not."""
        engine, control = FakeEngine(K), Control()
        hot = Budget(check=lambda: "hot" if how == "check" and live.history.steps == 13 else None)
        asked = {"settings": SETTINGS, "engine": engine}
        with tuner(tmp_path, budget=hot, control=control, **asked) as live:
            for report in live:
                if report.step == 13 and how != "check":
                    control.stop()
                    if "break" in how:
                        break
            tuned = live.tuned()
        assert tuned.step == 13 and tuned.loss < live.history.evaluations[0].loss - 0.2
        assert replay(tmp_path, START).best_values.sha256 == tuned.values.sha256
        assert len(engine.calls) == 13 + 3  # of 48 held-out examples, once
        control = Control()
        with tuner(tmp_path, control=control, **asked) as live:
            for report in live:
                assert report.step == 14
                control.stop()
            tuned = live.tuned()
        assert tuned.step == 13 and "step 14, the last, was not evaluated" in tuned.message
        assert len(engine.calls) == 13 + 3 + 1

    def test_the_run_s_own_settings_resume_it(self, tmp_path):
        """Also where the batch size was fitted to the number of examples."""
        own = SETTINGS | {"batch_size": 25, "steps": 2}
        whole = run(tmp_path / "whole", settings=own | {"steps": 9})
        run(tmp_path / "run", settings=own)
        fitted = replay(tmp_path / "run", START).history.settings
        assert fitted.batch_size < 25
        assert run(tmp_path / "run", settings=fitted.to_dict() | {"steps": 9}) == whole


def context(examples):
    return RunContext(answers=2, head_rows=2, hidden_width=6, examples=examples, entries=K)


class TestBatchSize:
    @given(st.integers(1, 64), st.integers(1, 3000), st.integers(1, 200))
    def test_one_pass_that_leaves_few_examples_out(self, size, examples, steps):
        asked = SETTINGS | {"batch_size": size, "steps": steps}
        fitted = estimators.fit(settings_of(asked), context(examples))
        assert fitted.batch_size <= min(size, examples)
        assert fitted.steps == min(steps, examples // fitted.batch_size)
        assert examples % fitted.batch_size <= max(1, examples // 16)


class Spoilt(FakeEngine):
    """Returns something else in call number ``at``: logp, hidden states or both changed."""

    def __init__(self, at, *, logp=0.0, hidden=0.0):
        super().__init__(K)
        self.at, self.logp, self.hidden = at, np.float32(logp), np.float32(hidden)

    def score(self, batch, values, **nothing):
        scores = super().score(batch, values)
        if len(self.calls) == self.at:
            scores.logp[0, 1, 0] += self.logp
            scores.hidden[0, 1, 3] += self.hidden
        return scores


SPOILT = [
    *({"logp": odd} for odd in (np.nan, -np.inf)),
    *({"hidden": odd} for odd in (np.nan, np.inf, 1e6)),  # the last is beyond float16
]


class TestNotFinite:
    @pytest.mark.parametrize("spoilt", SPOILT)
    @pytest.mark.parametrize("at", [1, 5])
    def test_a_step_is_skipped_and_leaves_values_and_state_alone(self, tmp_path, spoilt, at):
        engine = Spoilt(at, **spoilt)
        with tuner(tmp_path, settings=SETTINGS, engine=engine, eval_examples=None) as live:
            before = live.values.copy()
            for report in live:
                if report.step == at:
                    assert report.skipped in ("loss not finite", "runaway step")
                    assert live.values.sha256 == before.sha256 and report.scalars == ()
                else:
                    assert report.skipped is None
                before = live.values.copy()
            assert live.history.skipped == 1
            final = live.values.sha256
        found = replay(tmp_path, START)
        assert found.sha256 == final
        assert len(found.estimator.state["gold"]) == 64 - 4
        assert all(np.isfinite(part).all() for part in found.estimator.state.values())


class TestBatchLook:
    def look(self, rows, examples):
        return Look(FakeEngine(K), FakeTask(), replace(BOUNDS, rows=rows), examples)

    @given(st.integers(1, 16), st.integers(1, 40), st.integers(0, 99))
    @hypothesis_settings(deadline=None)
    def test_observed_in_the_order_given_however_the_passes_are_cut(self, rows, count, seed):
        examples = fake_examples(count, seed=seed)
        losses, seen = observe(self.look(rows, examples), random_weights(seed))
        assert losses.shape == (1, count)
        assert seen.gold.tolist() == [example.gold for example in examples]
        for place, example in enumerate(examples):
            alone, own = observe(self.look(16, [example]), random_weights(seed))
            assert np.isclose(losses[0, place], alone[0, 0], rtol=1e-5)
            assert np.allclose(seen.scores[place], own.scores[0], rtol=1e-5)
            assert (seen.features[place] == own.features[0]).all()

    def test_weights_of_zero_change_no_score(self):
        batch = FakeTask().collate(TRAIN[:8])
        plain = Values(START.values).score(ENGINE, batch)
        assert (head_of(np.zeros(ENTRIES, np.float32)).score(ENGINE, batch) == plain).all()

    def test_a_share_of_the_program_s_own_scores_stays(self):
        seen, logp = np.ones((1, 3, 7), np.float32), np.full((1, 3, 2), -8, np.float32)
        weights = np.arange(14, dtype=np.float32)
        for less, wanted in ((-0.5, [17, 66]), (-1.0, [21, 70])):
            part = head_of(np.append(weights, np.float32(less))).part
            assert (part.added(logp, seen) == np.array(wanted)).all()


def real_task(**changes):
    return task_from_spec({**TASK, **changes}, tiny_tokenizer(), BOUNDS, 0)


COMPLETION = {"kind": "completion", "template": "{prompt}", "completion_field": "completion"}


class TestRefusals:
    def test_sizes_follow_task_and_program(self):
        three = real_task(verbalisers={"no": " bad", "9": " good", "10": " so"})
        spec, context = ESTIMATORS["readout"], fake_context(ENGINE, three, 1)
        described = {"kind": "answer-head", "labels": ["10", "9", "no"], "width": 6}
        own = ReadoutOptions()
        assert spec.part(own, context) == described
        assert spec.shape(own, context) == {"answers": 3}
        assert len(START.tuned_from(described).part.own) == 22
        choice = {"kind": "multiple_choice", "template": "{text}", "choice_fields": ["a", "b", "c"],
                  "label_field": "label"}  # fmt: skip
        task = task_from_spec(choice, tiny_tokenizer(), BOUNDS, 0)
        context = fake_context(ENGINE, task, 1)
        assert spec.part(own, context) == {**described, "labels": []}
        assert spec.shape(own, context) == {"answers": 3}

    def test_a_task_without_a_choice(self, tmp_path):
        task = task_from_spec(COMPLETION, tiny_tokenizer(), BOUNDS, 0)
        with pytest.raises(TuningError, match=r"needs a task of choosing .*; take another"):
            tuner(tmp_path / "run", task=task, settings=SETTINGS)
        assert not (tmp_path / "run").exists()

    def test_programs_without_hidden_states(self, tmp_path):
        engine = FakeEngine(K)
        engine.hidden_width = 0
        with pytest.raises(TuningError, match="a program that returns hidden states; export the"):
            tuner(tmp_path / "run", engine=engine, settings=SETTINGS)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("length", [0, K - 1, K + 1])
    def test_values_of_another_bundle(self, length):
        values = Values(np.zeros(length, np.float32))
        for asked in (evaluate, predict):
            with pytest.raises(TuningError, match=rf"{length} values are not the 64 of this prog"):
                asked(ENGINE, FakeTask(), HELD_OUT, values, BOUNDS)

    def test_an_answer_head_of_other_answers(self):
        own = np.zeros(22, np.float32)
        with pytest.raises(TuningError, match="is for 'b', 'a', 'left', this task for 'right', 'l"):
            evaluate(ENGINE, FakeTask(), HELD_OUT, head_of(own, ("b", "a", "left")), BOUNDS)
        with pytest.raises(TuningError, match="is for choices of the rows' own, this task for"):
            evaluate(ENGINE, FakeTask(), HELD_OUT, head_of(own[:8], ()), BOUNDS)

    def test_an_answer_head_of_other_order_gives_the_same_answers(self):
        """Its rows are found by their labels' names."""
        values = random_weights(4)
        own = values.part.own
        turned = np.concatenate([own[7:14], own[:7], own[14:]])
        found = [
            evaluate(ENGINE, FakeTask(), HELD_OUT, each, BOUNDS)
            for each in (values, head_of(turned, LABELS[::-1]))
        ]
        assert found[0] == found[1]
        assert found[0] != evaluate(ENGINE, FakeTask(), HELD_OUT, head_of(turned), BOUNDS)
        three = AnswerHead(("b", "c", "a"), 0, np.float32([2, 3, 1, 0]))
        task = SimpleNamespace(head_labels=("a", "b", "c"), head_rows=3)
        assert three.for_task(task, SimpleNamespace(hidden_width=0)).own.tolist() == [1, 2, 3, 0]

    def test_a_readout_for_a_program_or_task_that_takes_none(self):
        plain = FakeEngine(K)
        plain.hidden_width = 0
        Values(START.values).for_task(FakeTask(), plain)
        random_weights(0).for_task(FakeTask(), ENGINE)
        writing = task_from_spec(COMPLETION, tiny_tokenizer(), BOUNDS, 0)
        for engine, task, message in (
            (plain, FakeTask(), "reads 6 numbers a position, this program returns 0: give the b"),
            (ENGINE, writing, "leaves no answer to choose: give the ta"),
        ):
            with pytest.raises(TuningError, match=message):
                random_weights(0).for_task(task, engine)

    @pytest.mark.parametrize(
        ("estimator", "sizes", "part", "message"),
        [
            ("readout", None, {}, "make sense: readout needs a shape"),
            ("readout", {"answers": 2}, None, "has 79 values, the bundle 64"),
            ("two-point", {"answers": 2}, {}, "two-point takes no shape"),
            ("two-point", None, {}, "two-point takes no part"),
            ("readout", {"rows": 2}, {}, r"make sense: readout \{'rows': 2\}"),
            ("readout", {"answers": 2, "depth": 1}, {}, "depth"),
            ("readout", {"answers": 4}, {}, "52 scalars .* do not fit readout"),
            ("readout", {"answers": 3}, {}, "readout of 3 answers and 2 rows of 6"),
            ("readout", {"answers": 2}, {"width": 5}, "has 79 values, the bundle 77"),
            ("readout", {"answers": 2}, {"width": 0}, "field width is 0"),
            ("readout", {"answers": 2}, {"width": 2**28}, "an answer head of 536870915 weights"),
            ("readout", {"answers": 2}, {"labels": ["a", "a"]}, "labels must name two or more"),
            ("readout", {"answers": 2}, {"labels": "ab"}, "field labels has the wrong type"),
            ("readout", {"answers": 2}, {"kind": "tail"}, "a part of kind 'tail' is unknown; know"),
            ("text-head", None, {}, "text-head needs a text head"),
        ],
    )
    def test_journals_whose_header_contradicts_itself(
        self, tmp_path, done, estimator, sizes, part, message
    ):
        journal = read_journal(done[0])
        own = {**journal.header.settings, "estimator": estimator}
        if estimator == "two-point":
            own |= asdict(TwoPointOptions(eps=0.1))
        elif estimator == "text-head":
            own |= asdict(TextHeadOptions())
        part = None if part is None else {**journal.header.part, **part}
        forged = replace(journal.header, shape=sizes, part=part, settings=own)
        records = [placed.record for placed in journal.records]
        JournalWriter.create(tmp_path, forged, records=records).close()
        with pytest.raises(JournalError, match=message):
            replay(tmp_path, START)
        with pytest.raises(JournalError, match=message):
            tuner(tmp_path, settings=None)

"""A readout: what it learns from, what it refuses, and the same bits after any interruption."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiler import needs_compiler
from fakes import BOUNDS, FakeEngine, FakeTask, fake_examples, fake_ground
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.bundle.exported_values import export_values, load_values, values_sha256
from seedtune.runtime.engines import Scores, open_engine
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import ESTIMATORS, Ground
from seedtune.runtime.estimators import readout as estimator_module
from seedtune.runtime.estimators.readout import Readout
from seedtune.runtime.estimators.ridge_logistic import SHARES, Choice, Examples, fit
from seedtune.runtime.journal.file import JOURNAL_FILE, JournalWriter, read_journal
from seedtune.runtime.journal.operations import branch, diff, rewind, share, verify
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.snapshots import compact
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.answer_head import (
    AnswerHeadShape,
    add_head,
    check_values,
    score_batch,
)
from seedtune.runtime.scoring.batch_loss import BatchLook
from seedtune.runtime.scoring.evaluation import evaluate, predict
from seedtune.runtime.settings import Settings
from seedtune.runtime.tasks import (
    Batch,
    Encoded,
    Observation,
    encode_rows,
    task_for,
    task_from_spec,
)
from seedtune.runtime.tuning.tuner import Tuner
from tiny_bundle import TASK, tiny_tokenizer, write_tiny_bundle
from tiny_run import ENGINE, HELD_OUT, START, TRAIN, K, run, tuner

SETTINGS = Settings(
    seed=3, steps=60, batch_size=4, lr="auto", eval_every=4, estimator="readout", best_by="loss"
)
SHAPE = AnswerHeadShape(rows=2, width=6, answers=2, share=1)
LONG = replace(SETTINGS, batch_size=1, steps=150, eval_every=25)
MANY = fake_examples(150)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of 16 steps: its folder and the hash of its final values."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, run(folder, settings=SETTINGS)


def go_on(folder: Path, *, until: int | None = None, settings: Settings | None = LONG) -> str:
    """Start or resume the long run; stop after ``until`` steps or at its end."""
    with tuner(folder, settings=settings, train=MANY) as live:
        for report in live:
            if report.step == until:
                break
        return values_sha256(live.values)


def random_weights(seed: int) -> np.ndarray:
    """Values of the fake bundle with a readout."""
    weights = np.random.default_rng(seed).standard_normal(SHAPE.entries).astype(np.float32)
    return np.concatenate([START.values, weights])


class Surprising(FakeTask):
    """A hundredfold loss of training batch number ``at``."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def losses(self, logp: np.ndarray, batch: Batch) -> np.ndarray:
        self.at -= batch.examples == SETTINGS.batch_size
        surprise = self.at == 0 and batch.examples == SETTINGS.batch_size
        return super().losses(logp, batch) * (100 if surprise else 1)


class TestRun:
    def test_it_learns_with_one_forward_a_step(self, tmp_path: Path) -> None:
        engine = FakeEngine(K)
        with tuner(tmp_path, settings=SETTINGS, engine=engine) as live:
            reports = list(live)
            first, last = live.history.evaluations[0], live.history.evaluations[-1]
        assert last.loss < first.loss - 0.25 and last.metric > first.metric + 0.1
        assert [r.forwards for r in reports] == list(range(1, 17))
        early, late = (np.mean([r.loss for r in half]) for half in (reports[:8], reports[8:]))
        assert late < early / 2
        evaluations = 3  # of 48 examples in passes of 16: five, of which four know the states
        assert len(engine.calls) == 16 + evaluations
        assert {probes for _, probes in engine.calls} == {1}

    def test_it_ends_when_every_example_was_seen_once(self, tmp_path: Path) -> None:
        with tuner(tmp_path, settings=SETTINGS) as live:
            assert len(list(live)) == 16 and live.stop_reason == "all 16 steps done"
        features = replay(tmp_path, START).estimator.state["features"]
        batch = FakeTask().collate(TRAIN)
        wanted = ENGINE.score(batch, START.values[None]).hidden[0].astype(np.float16)
        assert sorted(map(bytes, features)) == sorted(map(bytes, wanted))

    def test_the_sensitive_values_stay_as_they_are(self, tmp_path: Path) -> None:
        with tuner(tmp_path, settings=SETTINGS) as live:
            list(live)
            assert (live.values[:K] == START.values).all()
            assert live.values[K:].any() and len(live.values) == K + SHAPE.entries

    def test_the_weights_are_those_that_all_examples_ask_for(self, tmp_path: Path) -> None:
        with tuner(tmp_path, settings=SETTINGS) as live:
            list(live)
            weights = live.values[K:]
        found, share = weights[:-1].reshape(2, 7), 1 + float(weights[-1])
        state = replay(tmp_path, START).estimator.state
        assert (state["weights"] == weights).all() and share in (1, *SHARES)
        inputs = np.concatenate([state["features"], np.ones((64, 1, 1))], axis=2)
        offset = np.float32(share) * state["offset"]
        seen = Examples(offset, inputs.astype(np.float32), state["gold"])
        wanted = fit(seen, float(state["ridge"][0]), np.zeros((2, 7), np.float32))
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()

    def test_the_oldest_examples_are_forgotten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(tmp_path / "all", settings=SETTINGS)
        everything = replay(tmp_path / "all", START).estimator.state
        monkeypatch.setattr(estimator_module, "MEMORY", 20)
        live = run(tmp_path / "few", settings=SETTINGS)
        found = replay(tmp_path / "few", START)
        assert found.sha256 == live != whole
        for name in ("gold", "offset", "features"):
            assert (found.estimator.state[name] == everything[name][-20:]).all(), name

    def test_the_ridge_is_chosen_again_as_examples_grow_until_it_settles(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen, plain = [], estimator_module.choose

        def watched(seen: Examples, *rest: Any) -> Choice:
            chosen.append(len(seen.gold))
            return plain(seen, *rest)

        monkeypatch.setattr(estimator_module, "choose", watched)
        run(tmp_path / "a", settings=SETTINGS)
        assert chosen == [4, 8, 12, 16, 24, 32, 44, 60]
        chosen.clear()
        monkeypatch.setattr(estimator_module, "_SETTLED", 30)
        run(tmp_path / "b", settings=SETTINGS)
        assert chosen == [4, 8, 12, 16, 24, 32]

    def test_a_run_of_before_with_a_learning_rate_is_replayed_by_it(self) -> None:
        estimator, ends = Readout(SHAPE, 1), []
        numbers = np.random.default_rng(0).uniform(0.5, 1, estimator.scalar_count)
        for lr in (1.0, 0.25):
            values = np.zeros(SHAPE.entries, np.float32)
            estimator.apply(values, numbers.astype(np.float16), seed=0, step=0, lr=lr)
            ends.append(values)
        assert ends[0].all() and np.allclose(ends[1], 0.25 * ends[0], rtol=1e-6)

    @pytest.mark.parametrize("eval_examples", [None, HELD_OUT])
    def test_a_batch_that_surprises_is_learned_from(
        self, tmp_path: Path, eval_examples: Any
    ) -> None:
        """No probe moved the values there: left out, it would teach nothing."""
        task = Surprising(4)
        with tuner(tmp_path, settings=SETTINGS, task=task, eval_examples=eval_examples) as live:
            reports = list(live)
        assert reports[3].loss > 10 * reports[0].loss
        assert [report.skipped for report in reports] == [None] * 16

    def test_batches_beyond_the_bounds_are_split(self, tmp_path: Path) -> None:
        small = replace(START, bounds=replace(BOUNDS, rows=2))
        engine = FakeEngine(K)
        with tuner(tmp_path, settings=SETTINGS, start=small, engine=engine) as live:
            list(live)
            found = live.values[K:].copy()
        assert all(rows * length <= 16 for (rows, length), _ in engine.calls)
        with tuner(tmp_path / "whole", settings=SETTINGS) as live:
            list(live)
            assert np.allclose(found, live.values[K:], atol=0.02)


class TestInterrupted:
    @given(stops=st.lists(st.integers(1, 15), max_size=4, unique=True).map(sorted))
    @hypothesis_settings(deadline=None, max_examples=25)
    def test_resumed_and_replayed_equal_uninterrupted(
        self, done: tuple[Path, str], stops: list[int]
    ) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for stop in stops:
                with tuner(folder, settings=SETTINGS) as live:
                    for report in live:
                        if report.step == stop:
                            break
                    assert replay(folder, START).sha256 == values_sha256(live.values)
            assert run(folder, settings=SETTINGS) == done[1]
            assert replay(folder, START).sha256 == done[1]
            ours, theirs = read_journal(folder), read_journal(done[0])
            assert [p.record for p in ours.records] == [p.record for p in theirs.records]

    @given(st.data())
    @hypothesis_settings(deadline=None, max_examples=40)
    def test_a_journal_cut_at_any_byte_goes_on_to_the_same_bits(
        self, done: tuple[Path, str], data: st.DataObject
    ) -> None:
        """What a kill at any moment leaves behind."""
        whole = (done[0] / JOURNAL_FILE).read_bytes()
        cut = data.draw(st.integers(read_journal(done[0]).header_end, len(whole) - 1))
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / JOURNAL_FILE).write_bytes(whole[:cut])
            assert run(Path(name), settings=None) == done[1]
            assert replay(name, START).sha256 == done[1]

    def test_the_run_s_own_settings_resume_it(self, tmp_path: Path) -> None:
        """Also where the batch size was fitted to the number of examples."""
        own = replace(SETTINGS, batch_size=25, steps=2)
        whole = run(tmp_path / "whole", settings=replace(own, steps=9))
        run(tmp_path / "run", settings=own)
        fitted = replay(tmp_path / "run", START).history.settings
        assert fitted.batch_size < 25
        assert run(tmp_path / "run", settings=replace(fitted, steps=9)) == whole

    def test_the_best_step_ships_after_resuming_too(self, tmp_path: Path) -> None:
        its = replace(SETTINGS, eval_every=1)
        with tuner(tmp_path, settings=its) as live:
            states = {0: live.values.copy()}
            for report in live:
                states[report.step] = live.values.copy()
            tuned = live.tuned()
        assert (tuned.values == states[tuned.step]).all() and tuned.step > 0
        with tuner(tmp_path, settings=None) as again:
            assert (again.tuned().values == tuned.values).all()
        assert (replay(tmp_path, START).best_values == tuned.values).all()


class TestOperations:
    def test_rewind_branch_and_compact_keep_it(self, tmp_path: Path) -> None:
        live = go_on(tmp_path / "run")
        hashes = {step: replay(tmp_path / "run", START, until=step).sha256 for step in (100, 137)}
        branch(tmp_path / "run", tmp_path / "b", step=140)
        rewind(tmp_path / "b", 137)
        assert replay(tmp_path / "b", START).sha256 == hashes[137]
        before = replay(tmp_path / "b", START)
        assert compact(tmp_path / "b", START).header.first_step == 137 - 64
        after = replay(tmp_path / "b", START)
        assert after.sha256 == hashes[137]
        for name, part in before.estimator.state.items():
            assert (after.estimator.state[name] == part).all(), name
        branch(tmp_path / "b", tmp_path / "c", step=100)
        assert replay(tmp_path / "c", START).sha256 == hashes[100]
        assert go_on(tmp_path / "c", settings=None) == live
        assert go_on(tmp_path / "b", settings=None) == live
        compact(tmp_path / "b", START)  # from snapshot to snapshot
        assert verify(tmp_path / "b", START).sha256 == live
        assert diff(tmp_path / "run", tmp_path / "c").common_steps == 150

    def test_sharing_is_refused_for_what_the_journal_holds(
        self, tmp_path: Path, done: tuple[Path, str]
    ) -> None:
        with pytest.raises(
            JournalError, match=r"holds numbers of single examples.*share the tuned values"
        ):
            share(done[0], tmp_path / "sent.journal", START)
        assert not (tmp_path / "sent.journal").exists()


def ground(examples: int) -> Ground:
    return Ground(answers=2, head_rows=2, hidden_width=6, examples=examples, entries=K)


class TestBatchSize:
    @given(st.integers(1, 64), st.integers(1, 3000), st.integers(1, 200))
    def test_one_pass_that_leaves_few_examples_out(
        self, size: int, examples: int, steps: int
    ) -> None:
        asked = replace(SETTINGS, batch_size=size, steps=steps)
        fitted = ESTIMATORS["readout"].fit(asked, ground(examples))
        assert fitted.batch_size <= min(size, examples)
        assert fitted.steps == min(steps, examples // fitted.batch_size)
        assert examples % fitted.batch_size <= max(1, examples // 16)

    @given(st.integers(1, 64), st.integers(1, 3000))
    def test_a_fitted_size_fits(self, size: int, examples: int) -> None:
        """So that a run can be resumed with its own settings."""
        fit_again = ESTIMATORS["readout"].fit
        once = fit_again(replace(SETTINGS, batch_size=size), ground(examples))
        assert fit_again(once, ground(examples)) == once


class Spoilt(FakeEngine):
    """Returns something else in call number ``at``: logp, hidden states or both changed."""

    def __init__(self, at: int, *, logp: float = 0.0, hidden: float = 0.0) -> None:
        super().__init__(K)
        self.at, self.logp, self.hidden = at, np.float32(logp), np.float32(hidden)

    def score(self, batch: Batch, values: np.ndarray) -> Scores:
        scores = super().score(batch, values)
        if len(self.calls) == self.at:
            scores.logp[0, 1, 0] += self.logp
            scores.hidden[0, 1, 3] += self.hidden
        return scores


SPOILT = [{"logp": np.nan}, {"logp": -np.inf}, {"hidden": np.nan}, {"hidden": np.inf}]


class TestNotFinite:
    @pytest.mark.parametrize("spoilt", SPOILT)
    @pytest.mark.parametrize("at", [1, 5])
    def test_a_step_is_skipped_and_leaves_values_and_state_alone(
        self, tmp_path: Path, spoilt: dict[str, float], at: int
    ) -> None:
        engine = Spoilt(at, **spoilt)
        with tuner(tmp_path, settings=SETTINGS, engine=engine, eval_examples=None) as live:
            before = live.values.copy()
            for report in live:
                if report.step == at:
                    assert report.skipped in ("loss not finite", "runaway step")
                    assert (live.values == before).all() and report.scalars == ()
                else:
                    assert report.skipped is None
                before = live.values.copy()
            assert live.history.skipped == 1
            final = values_sha256(live.values)
        found = replay(tmp_path, START)
        assert found.sha256 == final
        assert len(found.estimator.state["gold"]) == 64 - 4
        assert all(np.isfinite(part).all() for part in found.estimator.state.values())

    def test_hidden_states_beyond_float16_are_skipped(self, tmp_path: Path) -> None:
        engine = Spoilt(1, hidden=1e6)
        with tuner(tmp_path, settings=SETTINGS, engine=engine, eval_examples=None) as live:
            assert [report.skipped for report in live] == ["runaway step"] + [None] * 15

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
    @pytest.mark.parametrize("where", ["scores", "features"])
    def test_scalars_of_a_batch_that_is_not_sound_are_not_finite(
        self, where: str, bad: float
    ) -> None:
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((4, 1, 7)).astype(np.float32)
        seen = Observation(rng.standard_normal((4, 2)), inputs, np.array([0, 1, 1, 0]))
        estimator = Readout(SHAPE, 4)
        good = estimator.scalars(seen)
        assert np.isfinite(good).all() and good.shape == (estimator.scalar_count,)
        getattr(seen, where).reshape(-1)[2] = bad
        assert not np.isfinite(estimator.scalars(seen)).any()
        assert estimator.state == {}

    def test_a_snapshot_of_before_is_gone_on_from(self) -> None:
        """It has no share, and its weights by rows."""
        shape, found = replace(SHAPE, share=0), []
        for by_rows in (False, True):
            estimator, values = Readout(shape, 16), np.zeros(shape.entries, np.float32)
            rng = np.random.default_rng(0)
            for _ in range(3):
                inputs = rng.standard_normal((16, 1, 7)).astype(np.float32)
                gold = (inputs[:, 0, 0] > 0).astype(np.int64)
                seen = Observation(np.zeros((16, 2)), inputs, gold)
                scalars = estimator.scalars(seen)
                estimator.apply(values, scalars, seed=0, step=0, lr=1.0)
                if by_rows:
                    estimator.state["weights"] = estimator.state["weights"].reshape(2, 7)
            found.append(values)
        assert (found[0] == found[1]).all() and found[0].any()


class TestBatchLook:
    def look(self, rows: int, examples: list[Encoded]) -> BatchLook:
        return BatchLook(FakeEngine(K), FakeTask(), replace(BOUNDS, rows=rows), examples)

    @given(st.integers(1, 16), st.integers(1, 40), st.integers(0, 99))
    @hypothesis_settings(deadline=None)
    def test_observed_in_the_order_given_however_the_passes_are_cut(
        self, rows: int, count: int, seed: int
    ) -> None:
        examples = fake_examples(count, seed=seed)
        losses, seen = self.look(rows, examples).observe(random_weights(seed))
        assert losses.shape == (1, count)
        assert seen.gold.tolist() == [example.gold for example in examples]
        for place, example in enumerate(examples):
            alone, own = self.look(16, [example]).observe(random_weights(seed))
            assert np.isclose(losses[0, place], alone[0, 0], rtol=1e-5)
            assert np.allclose(seen.scores[place], own.scores[0], rtol=1e-5)
            assert (seen.features[place] == own.features[0]).all()

    @given(st.integers(1, 16), st.integers(1, 40), st.integers(0, 99))
    @hypothesis_settings(deadline=None)
    def test_its_losses_are_those_of_the_same_values(
        self, rows: int, count: int, seed: int
    ) -> None:
        examples, values = fake_examples(count, seed=seed), random_weights(seed)
        losses, seen = self.look(rows, examples).observe(values)
        assert (losses == self.look(rows, examples).losses(values[None])).all()
        weights, share = values[K:-1].reshape(2, 7), 1 + values[-1]
        scored = share * seen.scores + (seen.features @ weights.T).reshape(seen.scores.shape)
        right = scored[np.arange(count), seen.gold]
        assert np.allclose(losses[0], np.logaddexp.reduce(scored, axis=1) - right, atol=1e-4)

    def test_weights_of_zero_change_no_score(self) -> None:
        batch = FakeTask().collate(TRAIN[:8])
        whole = np.concatenate([START.values, np.zeros(SHAPE.entries, np.float32)])
        plain = score_batch(ENGINE, batch, START.values[None])
        assert (score_batch(ENGINE, batch, whole[None]) == plain).all()

    def test_each_probe_has_a_readout_of_its_own(self) -> None:
        batch = FakeTask().collate(TRAIN[:8])
        rows = np.stack([random_weights(seed) for seed in range(2)])
        both = score_batch(ENGINE, batch, rows)
        for number, row in enumerate(rows):
            assert np.allclose(both[number], score_batch(ENGINE, batch, row[None])[0], atol=1e-5)
        inputs = np.ones((2, 3, 7), np.float32)
        logp = np.zeros((2, 3, 2), np.float32)
        weights = np.arange(28, dtype=np.float32).reshape(2, 14)
        wanted = weights[1].reshape(2, 7).sum(axis=1)
        assert (add_head(logp, inputs, weights)[1] == wanted).all()
        shares = np.concatenate([weights, [[-0.5], [-1]]], axis=1).astype(np.float32)
        found = add_head(logp - 8, inputs, shares)
        assert (found[0] == weights[0].reshape(2, 7).sum(axis=1) - 4).all()
        assert (found[1] == wanted).all()


def real_task(**changes: Any) -> Any:
    options = {"objective": changes.pop("objective", "label_words")}
    return task_from_spec({**TASK, **changes}, tiny_tokenizer(), BOUNDS, 0, **options)


COMPLETION = {"kind": "completion", "template": "{prompt}", "completion_field": "completion"}


class TestRefusals:
    def test_sizes_follow_task_and_program(self) -> None:
        three = real_task(verbalisers={"0": " bad", "1": " good", "2": " so"})
        shape = ESTIMATORS["readout"].shape
        sizes = {"rows": 3, "width": 6, "answers": 3, "share": 1}
        assert shape(Settings(), fake_ground(ENGINE, three, 1)) == sizes
        assert AnswerHeadShape(**sizes).entries == 22
        choice = {"kind": "multiple_choice", "template": "{text}", "choice_fields": ["a", "b", "c"],
                  "label_field": "label"}  # fmt: skip
        task = task_from_spec(choice, tiny_tokenizer(), BOUNDS, 0)
        sizes = {"rows": 1, "width": 6, "answers": 3, "share": 1}
        assert shape(Settings(), fake_ground(ENGINE, task, 1)) == sizes

    @pytest.mark.parametrize(
        "task",
        [
            real_task(objective="vocabulary"),
            task_from_spec(COMPLETION, tiny_tokenizer(), BOUNDS, 0),
        ],
        ids=["vocabulary", "completion"],
    )
    def test_tasks_without_a_choice(self, tmp_path: Path, task: Any) -> None:
        with pytest.raises(TuningError, match=r"needs a task of choosing .*; take another"):
            tuner(tmp_path / "run", task=task, settings=SETTINGS)
        assert not (tmp_path / "run").exists()

    def test_programs_without_hidden_states(self, tmp_path: Path) -> None:
        engine = FakeEngine(K)
        engine.hidden_width = 0
        with pytest.raises(TuningError, match="a program that returns hidden states; export the"):
            tuner(tmp_path / "run", engine=engine, settings=SETTINGS)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("length", [0, K - 1, K + 1, K + 7, K + 13, K + 16, K + 21])
    def test_values_of_another_bundle_or_task(self, length: int) -> None:
        values = np.zeros(length, np.float32)
        with pytest.raises(TuningError, match=rf"{length} values are neither the 64 of this prog"):
            evaluate(ENGINE, FakeTask(), HELD_OUT, values, BOUNDS)
        with pytest.raises(TuningError, match="give the bundle and the task that they were tuned"):
            predict(ENGINE, FakeTask(), HELD_OUT, values, BOUNDS)

    def test_a_readout_for_a_program_or_task_that_takes_none(self) -> None:
        plain = FakeEngine(K)
        plain.hidden_width = 0
        check_values(plain, FakeTask(), START.values)
        check_values(ENGINE, FakeTask(), random_weights(0))
        for engine, task in ((plain, FakeTask()), (ENGINE, real_task(objective="vocabulary"))):
            with pytest.raises(TuningError, match="79 values are neither the 64 of this program"):
                check_values(engine, task, random_weights(0))

    @pytest.mark.parametrize(
        ("estimator", "sizes", "message"),
        [
            ("readout", None, r"make sense: readout \{\}"),
            ("two-point", {"rows": 2, "width": 6, "answers": 2}, "two-point takes no shape"),
            ("two-point", None, "52 scalars a step do not fit two-point"),
            ("readout", {"rows": 2, "width": 6}, r"make sense: readout .*'width': 6\}"),
            ("readout", {"rows": 2, "width": 6, "answers": 2, "depth": 1}, "depth"),
            ("readout", {"rows": 2, "width": 6, "answers": 2, "share": 2}, "'share': 2"),
            ("readout", {"rows": 2, "width": 6, "answers": 2}, "52 scalars .* do not fit readout"),
            ("readout", {"rows": 2, "width": 5, "answers": 2}, "52 scalars .* do not fit readout"),
            ("readout", {"rows": 2, "width": 6, "answers": 3}, "readout .*'answers': 3"),
            ("readout", {"rows": 0, "width": 6, "answers": 2}, "readout .*'rows': 0"),
            ("readout", {"rows": 2**10, "width": 2**20, "answers": 2**10}, "readout .*1048576"),
        ],
    )
    def test_journals_whose_header_contradicts_itself(
        self, tmp_path: Path, done: tuple[Path, str], estimator: str, sizes: Any, message: str
    ) -> None:
        journal = read_journal(done[0])
        own = {**journal.header.settings, "estimator": estimator}
        if estimator != "readout":
            own["directions"] = 1
        forged = replace(journal.header, shape=sizes, settings=own)
        records = [placed.record for placed in journal.records]
        JournalWriter.create(tmp_path, forged, records=records).close()
        with pytest.raises(JournalError, match=message):
            replay(tmp_path, START)
        with pytest.raises(JournalError, match=message):
            tuner(tmp_path, settings=None)

    def test_a_journal_of_another_number_of_values(
        self, tmp_path: Path, done: tuple[Path, str]
    ) -> None:
        forged = replace(read_journal(done[0]).header, entries=K + 12)
        JournalWriter.create(tmp_path, forged).close()
        with pytest.raises(JournalError, match="has 76 values, the bundle 79"):
            replay(tmp_path, START)

    def test_a_resumed_run_keeps_its_estimator(self, tmp_path: Path) -> None:
        with tuner(tmp_path, settings=SETTINGS) as live:
            next(iter(live))
        other = replace(SETTINGS, estimator="two-point", directions=1, eps=1.0, lr=1.0)
        with pytest.raises(TuningError, match="the run has estimator=readout, not two-point"):
            tuner(tmp_path, settings=replace(other, steps=16), allow_changes=True)


class TestValuesFile:
    def test_what_was_written_is_what_loads(self, tmp_path: Path) -> None:
        bundle = write_tiny_bundle(tmp_path / "bundle", hidden_blocks=[1])
        weights = np.random.default_rng(0).standard_normal(2 * 9).astype(np.float32)
        values = np.concatenate([bundle.values.astype(np.float32), weights])
        export_values(tmp_path / "v", values, bundle, step=7)
        found = load_values(tmp_path / "v", bundle)
        assert found.dtype == np.float32 and (found == values).all()

    def test_without_a_readout_the_file_has_none(self, tmp_path: Path) -> None:
        from safetensors.numpy import load_file

        bundle = write_tiny_bundle(tmp_path / "bundle", hidden_blocks=[1])
        export_values(tmp_path / "v", bundle.values.astype(np.float32), bundle, step=0)
        assert set(load_file(tmp_path / "v")) == {"values", "indices"}


ROWS = [
    {"text": f"A film about {word}, told with {manner}.", "label": str(place % 2)}
    for place, (word, manner) in enumerate(
        (word, manner)
        for word in ("rain", "a cat", "a town", "numbers")
        for manner in ("humour", "patience", "rain", "a mat")
    )
]


@needs_compiler
def test_a_really_exported_program_is_tuned_and_its_values_file_answers_as_the_run_does(
    bundle: Bundle, tmp_path: Path
) -> None:
    engine = open_engine(bundle)
    task = task_for(bundle, TASK)
    examples = encode_rows(task, ROWS)
    arguments = engine, Start.of(bundle), task, examples
    options = {"folder": tmp_path / "run", "eval_examples": examples}
    its = replace(SETTINGS, batch_size=4, eval_every=1)
    with Tuner(*arguments, settings=its, **options) as live:
        next(iter(live))
    with Tuner(*arguments, **options) as live:
        list(live)
        tuned, last = live.tuned(), values_sha256(live.values)
    start = Start.of(bundle)
    assert replay(tmp_path / "run", start).sha256 == last
    assert tuned.step > 0 and len(tuned.values) == bundle.K + 2 * (bundle.hidden_width + 1) + 1
    export_values(tmp_path / "v", tuned.values, bundle, step=tuned.step)
    loaded = load_values(tmp_path / "v", bundle)
    assert (loaded == tuned.values).all()
    found = evaluate(engine, task, examples, loaded, bundle.bounds)
    assert (found.loss, found.metric) == (pytest.approx(tuned.loss), pytest.approx(tuned.metric))
    before = evaluate(engine, task, examples, start.values, bundle.bounds)
    assert found.loss < before.loss - 0.1
    answers = predict(engine, task, examples, loaded, bundle.bounds)
    assert answers == predict(engine, task, examples, tuned.values, bundle.bounds)
    right = [a.answer == row["label"] for a, row in zip(answers, ROWS, strict=True)]
    assert np.mean(right) == pytest.approx(found.metric)

"""A head for text: what moves, what it learns, what a run of it keeps, and when there is none."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from every_operation import check_every_operation
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.errors import BundleError, JournalError, SeedtuneWarning, TuningError
from seedtune.runtime.estimators import RunContext, StepContext, complete
from seedtune.runtime.estimators.text_head_estimator import (
    KEPT,
    MOMENTUM,
    TextHeadEstimator,
)
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.format import Note
from seedtune.runtime.journal.operations import branch, share
from seedtune.runtime.journal.run_folder import JOURNAL_FILE
from seedtune.runtime.journal.snapshots import forget
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import history_of, replay
from seedtune.runtime.scoring import text_head
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.evaluation import evaluate, predict
from seedtune.runtime.scoring.known_forwards import KnownForwards
from seedtune.runtime.scoring.text_head import Observed, TextHead
from seedtune.runtime.scoring.text_part import TextPart, tokens_of
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values, load_values
from seedtune.runtime.scoring.word_memory import A_STEP, WORDS
from seedtune.runtime.scoring.word_table import WordTable
from seedtune.runtime.tasks import Encoded, Task, encode_rows, task_for
from seedtune.runtime.tuning.tuner import Tuner
from text_bundle import (
    INPUTS,
    OUTPUTS,
    SPEC,
    WIDTH,
    TextEngine,
    frame_of,
    packed,
    text_parts,
    write_text_bundle,
)
from tiny_bundle import with_task, write_tiny_bundle

SEEN = ["the film was great", "the plot was good", "a dull plot", "the actors were bad"]
PLACE = text_parts()["text_head"].words
SAID = [" so I left because the", " and the plot was"]


def rows(count, seed=0):
    """Replies of someone of few words."""
    rng = random.Random(seed)
    return [{"before": rng.choice(SEEN), "reply": rng.choice(SAID)} for _ in range(count)]


def generic(world, count):
    """The first tokens of generic text."""
    numbers = np.arange(count)
    return Observed(world.text.frame.states[numbers].astype(np.float32), numbers)


class World:
    """A bundle, its engine, its task and examples."""

    def __init__(self, folder):
        self.bundle: Bundle = write_text_bundle(folder)
        self.engine = TextEngine(self.bundle)
        self.start = Start.of(self.bundle)
        self.task: Task = task_for(self.bundle)
        self.train: list[Encoded] = encode_rows(self.task, rows(120))
        self.held_out: list[Encoded] = encode_rows(self.task, rows(20, seed=1))

    @property
    def text(self):
        return self.start.kinds["text-adapter"].head

    def values(self, weights):
        """The start with a head of those weights."""
        return Values(self.start.values, TextPart(self.text, weights))

    def tokens(self):
        return tokens_of(self.look(), self.start.values, 2 * WIDTH)

    def losses(self, values, count=16):
        """Of the first training examples, each by itself."""
        return np.array(
            [
                evaluate(self.engine, self.task, [each], values, self.bundle.bounds).loss
                for each in self.train[:count]
            ]
        )

    def tuner(self, folder, **changes):
        arguments: dict[str, Any] = {
            "engine": self.engine,
            "start": self.start,
            "task": self.task,
            "train": self.train,
            "eval_examples": self.held_out,
            "settings": {"lr": 0.01, "steps": 60},
            **changes,
        }
        return Tuner(folder=folder, **arguments)

    def run(self, folder, **changes):
        with self.tuner(folder, **changes) as live:
            list(live)
            return live.values.sha256

    def look(self, examples=None):
        bounds = self.bundle.bounds
        return Look(self.engine, self.task, bounds, examples or self.train[:16])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("text") / "bundle")


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, world.run(folder)


class TestTheHead:
    def test_the_program_s_adapter_is_what_the_gradient_was_taken_at(self, world):
        weights = np.random.default_rng(0).standard_normal(world.text.entries, np.float32) / 10
        tokens, none = world.tokens(), generic(world, 0)
        for own in (np.zeros_like(weights), weights):
            found = world.text.gradient(own, tokens.observed, none, 1.0)
            wanted = world.losses(world.values(own))
            np.testing.assert_allclose(tokens.losses(found.logp)[0], wanted, atol=1e-4)
        plain = world.losses(Values(world.start.values))
        np.testing.assert_array_equal(world.losses(world.values(np.zeros_like(weights))), plain)

    @pytest.mark.parametrize("pull", [0.0, 6.0])
    def test_its_gradient_is_that_of_loss_and_divergence(self, world, pull):
        rng, text = np.random.default_rng(1), world.text
        weights = rng.standard_normal(text.entries, np.float32) / 10
        observed, held = world.tokens().observed, generic(world, 40)

        def objective(own):
            loss = -text.gradient(own, observed, held, 1.0).logp.mean()
            states = held.states
            words = text.words.vectors(slice(None)).astype(np.float64)
            logits = [
                (text.frame.read(states) + states @ adapter.T) @ words.T
                for adapter in (text.adapter(own), np.zeros((WIDTH, 64), np.float32))
            ]
            moved, before = (
                each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in logits
            )
            apart = (np.exp(before) * (before - moved)).sum(axis=1).mean()
            return float(loss + pull * apart)

        gradient = text.gradient(weights, observed, held, pull).gradient
        along = rng.standard_normal(text.entries, np.float32)
        above, below = (objective(weights + step * along) for step in (1e-3, -1e-3))
        wanted = float((gradient * along).sum())
        assert (above - below) / 2e-3 == pytest.approx(wanted, rel=0.02)

    def test_many_tokens_are_as_few_at_a_time(self, world, monkeypatch):
        weights = np.random.default_rng(5).standard_normal(world.text.entries, np.float32) / 10
        tokens = world.tokens()
        given = (weights, tokens.observed, generic(world, 40), 6.0)
        whole = world.text.gradient(*given)
        count = len(tokens.observed.words)
        for at_once in (7, count, count + 3):
            monkeypatch.setattr(text_head, "TOKENS", at_once)
            found = world.text.gradient(*given)
            np.testing.assert_allclose(found.gradient, whole.gradient, atol=1e-4)
            np.testing.assert_allclose(found.logp, whole.logp, atol=1e-5)

    def test_rare_words_are_drawn_for_a_gradient(self, world, monkeypatch):
        tokens = world.tokens()
        weights = np.zeros(world.text.entries, np.float32)
        given = (weights, tokens.observed, generic(world, 40), 6.0)
        whole = world.text.gradient(*given)
        monkeypatch.setattr(text_head, "RARE", 0.2)
        drawn = world.text.gradient(*given)
        np.testing.assert_allclose(drawn.logp, whole.logp, atol=1e-6)
        apart = np.linalg.norm(drawn.gradient - whole.gradient) / np.linalg.norm(whole.gradient)
        assert apart > 0.01

    def test_a_layer_norm_s_shift_and_mean_count(self):
        table = WordTable(*packed())
        shift = np.random.default_rng(3).standard_normal(WIDTH).astype(np.float32)
        frame = frame_of(table, shift=shift)
        states = np.random.default_rng(4).standard_normal((5, 64), np.float32)
        last = states[:, WIDTH:].astype(np.float64)
        unit = (last - last.mean(1, keepdims=True)) / last.std(1, keepdims=True)
        np.testing.assert_allclose(frame.read(states), unit * frame.weight + shift, atol=1e-5)


class TestTheStep:
    def test_its_rule_written_out(self):
        estimator, rng = TextHeadEstimator(5), np.random.default_rng(0)
        part = TextPart(
            cast(TextHead, SimpleNamespace(entries=5, terms=None)), np.zeros(5, np.float32)
        )
        values = Values(np.zeros(3, np.float32), part)
        m, moving, mean = np.zeros(5), np.zeros(5), np.zeros(5)
        for step in range(1, 9):
            signs = rng.integers(0, 2, 5)
            estimator.apply(values, np.packbits(signs), StepContext(0, step - 1, lr=0.25))
            m = MOMENTUM * m + (1 - MOMENTUM) * (2 * signs - 1)
            moving = moving - 0.25 * m / (1 - MOMENTUM**step)
            mean = mean + (moving - mean) * (1 - KEPT) / (1 - KEPT**step)
            np.testing.assert_allclose(part.own, mean, atol=1e-5)
            assert not values.sensitive.any()
            np.testing.assert_allclose(estimator.state["moving"], moving, atol=1e-5)

    def test_a_gradient_that_is_not_finite_is_not_taken(self, world):
        estimator = TextHeadEstimator(world.text.entries)
        estimator.state["moving"] = np.full(world.text.entries, np.inf, np.float32)
        values = world.values(np.zeros(world.text.entries, np.float32))
        with np.errstate(invalid="ignore"):
            found = estimator.measure(world.look(), values, StepContext(0, 0))
        assert found.scalars.dtype == np.float16 and np.isnan(found.scalars).all()

    @pytest.mark.parametrize(
        ("examples", "asked", "size", "steps"),
        [(1600, 16, 16, 100), (200, 16, 4, 50), (400, 16, 8, 50), (50, 16, 4, 12), (3, 16, 3, 1),
         (1600, 8, 8, 200)],
    )  # fmt: skip
    def test_few_examples_come_in_small_batches_once(self, world, examples, asked, size, steps):
        context = RunContext(0, 0, 96, examples, writes=True, parts=world.start.kinds)
        found = complete({"batch_size": asked}, context)
        assert (found.estimator, found.batch_size, found.steps) == ("text-head", size, steps)
        again = complete({**found.to_dict(), "steps": 77}, context)
        assert (again.batch_size, again.steps) == (size, 77)

    def test_where_there_is_nothing_for_it(self, world, tmp_path):
        plain = write_tiny_bundle(tmp_path / "b", task=SPEC)
        engine = TextEngine(world.bundle)
        engine.adapter_shape = None
        task = task_for(plain)
        examples = encode_rows(task, rows(8))
        asked = {"estimator": "text-head"}
        for bundle in (plain, world.bundle):  # one without a frame, one without an adapter
            given = (engine, Start.of(bundle), task, examples)
            with pytest.raises(TuningError, match=r"takes an adapter.*export the model again"):
                Tuner(*given, folder=tmp_path / "r", settings=asked)
        other = {**plain.manifest["task"], "kind": "classification", "label_field": "label"}
        del other["completion_field"]
        other["verbalisers"] = {"1": " great", "0": " terrible"}
        task = task_for(world.bundle, other)
        examples = encode_rows(task, [{"before": "the film", "label": "1"}] * 4)
        with pytest.raises(TuningError, match="needs a task of writing text"):
            Tuner(world.engine, world.start, task, examples, folder=tmp_path / "r", settings=asked)


class TestARun:
    def test_it_is_what_a_task_of_writing_gets_and_it_learns(self, world, tmp_path):
        with world.tuner(tmp_path / "run") as live:
            assert live.history.settings.estimator == "text-head"
            reports = list(live)
            tuned = live.tuned()
            first, last = live.history.evaluations[0], live.history.evaluations[-1]
        assert last.metric < first.metric / 2 and tuned.step == 60
        assert all(report.scalars == () and report.forwards == report.step for report in reports)
        own = tuned.values.part.own
        assert len(own) == world.text.entries + WORDS and own.any()
        np.testing.assert_array_equal(tuned.values.sensitive, world.start.values)
        engine, task, bounds = world.engine, world.task, world.bundle.bounds
        found = evaluate(engine, task, world.held_out, tuned.values, bounds)
        assert found.metric == pytest.approx(last.metric, rel=1e-6)
        (told,) = predict(engine, task, world.held_out[:1], tuned.values, bounds)
        (before,) = predict(engine, task, world.held_out[:1], Values(world.start.values), bounds)
        assert told.scores["nll"] < before.scores["nll"]
        engine = TextEngine(world.bundle)
        engine.adapter_shape = None
        with pytest.raises(TuningError, match="hold a text head, which this task or this program"):
            evaluate(engine, task, world.held_out, tuned.values, bounds)

    def test_forwards_that_it_has_a_share_in_are_not_kept(self, world, whole):
        known = KnownForwards(world.engine)
        asked = world.engine, world.task, world.held_out
        tuned = replay(whole[0], world.start).values
        for values in (tuned, Values(world.start.values), tuned, tuned.without_words()):
            found = evaluate(*asked, values, world.bundle.bounds, known=known)
            fresh = evaluate(*asked, values, world.bundle.bounds)
            assert (found.loss, found.forwards) == (fresh.loss, fresh.forwards)

    def test_the_start_ships_where_held_out_text_does_not_gain(self, world, tmp_path):
        with world.tuner(tmp_path, settings={"lr": 30.0, "steps": 10}) as live:
            list(live)
            tuned = live.tuned()
        assert tuned.step == 0 and "the start ships" in tuned.message
        assert not tuned.values.part.own.any()

    def test_every_operation_keeps_momentum_moving_weights_and_words(self, world, tmp_path):
        settings = {"lr": 0.01, "steps": 100, "eval_every": 20}
        check_every_operation(tmp_path, world.tuner, world.start, settings)

    def test_a_journal_holds_a_bit_a_weight_and_words_and_is_not_shared(
        self, world, tmp_path, whole
    ):
        journal = read_journal(whole[0])
        step = world.text.entries // 8 + 3 * A_STEP
        assert journal.header.signs == 8 * step and journal.header.scalar_count == 0
        assert journal.header.part == {
            "kind": "text-adapter", "outputs": OUTPUTS, "inputs": INPUTS, "words": WORDS,
            "terms": 0,
        }  # fmt: skip
        assert journal.end < journal.header_end + 60 * (step + 12) + 200
        with pytest.raises(JournalError, match=r"single examples.*journal export --without-words"):
            share(whole[0], tmp_path / "sent", world.start)

    def test_asked_to_remember_nothing_it_learns_the_same_and_keeps_no_word(
        self, world, tmp_path, whole
    ):
        world.run(tmp_path, settings={"lr": 0.01, "steps": 60, "remember": False})
        ours, theirs = replay(tmp_path, world.start), replay(whole[0], world.start)
        assert ours.header.signs == world.text.entries
        assert ours.values.entries == world.bundle.K + world.text.entries
        np.testing.assert_array_equal(ours.values.part.own, theirs.values.part.weights)
        np.testing.assert_array_equal(ours.values.sensitive, theirs.values.sensitive)
        assert theirs.values.part.words.any()
        # The memory is what makes the difference on the same words.
        (told, alone) = (
            evaluate(
                world.engine, world.task, world.held_out, done.values, world.bundle.bounds
            )
            for done in (theirs, ours)
        )  # fmt: skip
        assert told.metric < alone.metric
        with pytest.raises(JournalError, match="keeps no words of the texts"):
            forget(tmp_path, world.start)

    def test_words_are_forgotten_for_good_and_the_map_stays(self, world, tmp_path, whole):
        branch(whole[0], tmp_path / "run")
        before = replay(whole[0], world.start)
        newest = before.values.part.words[-5:]
        said = np.abs(newest).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        assert (newest > 0).all() and said in (whole[0] / JOURNAL_FILE).read_bytes()
        for steps in (60, 70):  # again, after ten more that were told to remember
            journal = forget(tmp_path / "run", world.start)
            assert journal.header.train_sha256 == journal.header.eval_sha256 == ""
            assert not journal.records
            done = replay(tmp_path / "run", world.start)
            assert done.history.steps == steps and not done.values.part.words.any()
            # Evaluations were made with the words.
            assert done.best is None and not done.history.evaluations
            assert done.values.part.weights.any()
            if steps == 60:
                assert done.values.sha256 == before.values.without_words().sha256
                world.run(tmp_path / "run", settings={"steps": 70, "remember": True})
                assert replay(tmp_path / "run", world.start).values.part.words.any()
        for file in (tmp_path / "run").iterdir():
            data = file.read_bytes()
            assert said not in data and newest.tobytes() not in data
        replay(tmp_path / "run", world.start)

    def test_a_file_that_cannot_be_removed_is_named(self, world, tmp_path, whole):
        branch(whole[0], tmp_path / "run")
        for name in ("snapshot-1", "values.safetensors"):
            (tmp_path / "run" / name).mkdir()
            with pytest.raises(JournalError, match=rf"{name}: cannot be removed"):
                forget(tmp_path / "run", world.start)

    def test_a_run_of_no_steps_has_nothing_to_forget(self, world, tmp_path):
        with world.tuner(tmp_path):
            pass
        header = forget(tmp_path, world.start).header
        assert header.snapshot is None and header.settings["remember"] is False

    def test_a_run_that_forgot_keeps_no_words_until_it_is_told_to(self, world, tmp_path, whole):
        branch(whole[0], tmp_path / "run")
        forget(tmp_path / "run", world.start)

        def words(**settings):
            world.run(tmp_path / "run", settings=settings)
            return bool(replay(tmp_path / "run", world.start).values.part.words.any())

        for steps, said in ((70, None), (80, False)):
            with pytest.warns(SeedtuneWarning, match="forgot the words of its texts and keeps no"):
                assert not words(steps=steps, remember=said)
            assert read_journal(tmp_path / "run").header.settings["remember"] is False
            data = history_of(read_journal(tmp_path / "run")).data
            assert set(data.values()) == {""}  # no hash confirms a guess of them
        assert words(steps=90, remember=True)
        data = history_of(read_journal(tmp_path / "run")).data
        assert data["train_sha256"] == read_journal(whole[0]).header.train_sha256
        # From then on other rows are noticed again, and it goes on as it is.
        with pytest.raises(TuningError, match="other training rows"):
            world.tuner(tmp_path / "run", settings=None, train=world.train[1:])
        assert words(steps=100)

    def test_a_forgetful_run_may_go_on_with_other_rows(self, world, tmp_path, whole):
        branch(whole[0], tmp_path / "run")
        forget(tmp_path / "run", world.start)
        settings = {"steps": 62}
        with pytest.warns(SeedtuneWarning, match="forgot"):
            world.run(tmp_path / "run", settings=settings, train=world.train[1:], eval_examples=[])
        assert history_of(read_journal(tmp_path / "run")).changes == [(60, "steps", 62)]

    @pytest.mark.parametrize("remember", [True, False])
    def test_a_memory_is_neither_begun_nor_left_in_the_middle(self, world, tmp_path, remember):
        world.run(tmp_path, settings={"lr": 0.01, "steps": 3, "remember": remember})
        advice = "journal forget" if remember else "another folder"
        with pytest.raises(TuningError, match=advice):
            world.tuner(tmp_path, settings={"remember": not remember}, allow_changes=True)
        world.run(tmp_path, settings={"steps": 4, "remember": remember})

    def test_the_program_that_a_run_goes_on_with_is_not_forgotten(self, world, tmp_path, whole):
        branch(whole[0], tmp_path)
        with world.tuner(tmp_path, settings=None) as live:
            live._run.commit(Note("program: another"))
        forget(tmp_path, world.start)
        assert replay(tmp_path, world.start).history.program == "another"

    def test_values_whose_memory_holds_no_words_are_refused(self, world, whole):
        values = replay(whole[0], world.start).values.copy()
        values.part.own[-1] = 0.25
        arguments = (world.engine, world.task, world.held_out, values, world.bundle.bounds)
        with pytest.raises(TuningError, match=r"memory of words is damaged: entry 32767 is 0\.25"):
            evaluate(*arguments)

    def test_tuned_values_go_through_a_file(self, world, tmp_path, whole):
        values = replay(whole[0], world.start).best_values
        export_values(tmp_path / "v", values, world.bundle, step=60)
        assert (tmp_path / "v").stat().st_mode & 0o077 == 0  # the user's words are in it
        found = load_values(tmp_path / "v", world.bundle, world.start.kinds)
        assert found.sha256 == values.sha256 and found.keeps_words

    def test_what_it_will_take_is_left_free(self, world, tmp_path):
        """Passes must fit beside the words, the frame and the weights."""
        from seedtune.runtime.engines.memory import resident_bytes

        held = resident_bytes()
        assert held is not None and world.start.memory is not None
        alone, whole = (TextHeadEstimator(world.text.entries, 0, words) for words in (0, WORDS))
        # The words thrice and their index, of 169 bytes a word where it is made.
        assert whole.memory_bytes(120) - alone.memory_bytes(120) > WORDS * (3 * 4 + 169)
        needed = whole.memory_bytes(120) + world.text.memory_bytes
        assert needed > 20e6
        limit = held + world.start.memory.bytes(world.bundle.bounds) + needed // 2
        with pytest.raises(TuningError, match=r"the limit is .* MB: raise the memory"):
            world.tuner(tmp_path, memory_limit=limit)
        world.tuner(tmp_path, memory_limit=limit + 2 * needed).close()


class TestTheBundle:
    def test_its_frame_comes_back_and_goes_with_another_task(self, world, tmp_path):
        frame = open_bundle(world.bundle.path).text_frame()
        wanted = frame_of(WordTable(*packed()))
        for name in vars(wanted):
            np.testing.assert_array_equal(getattr(frame, name), getattr(wanted, name))
        other = with_task(world.bundle, tmp_path / "c", {**SPEC, "template": "{before}:"})
        assert other.text_head == world.bundle.text_head
        np.testing.assert_array_equal(other.text_frame().states, wanted.states)
        assert write_tiny_bundle(tmp_path / "d").text_head is None

    def test_a_damaged_frame_is_refused_when_the_bundle_opens(self, tmp_path):
        write_text_bundle(tmp_path / "b")
        file = tmp_path / "b" / "text.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(BundleError, match=r"text.safetensors: altered"):
            open_bundle(tmp_path / "b")
        file.unlink()
        with pytest.raises(BundleError, match=r"text.safetensors: cannot be read"):
            open_bundle(tmp_path / "b")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"states": np.zeros((3, 65), np.float16)}, r"states is float16 \[3, 65\], must be"),
            ({"states": np.zeros((0, 64), np.float16)}, "holds states of 0 tokens"),
            ({"inputs": np.zeros((64, 2), np.float16)}, "inputs is"),
            ({"weight": np.zeros(WIDTH, np.float64)}, "weight is float64"),
            ({"weight": np.full(WIDTH, np.nan, np.float32)}, "weight holds numbers that are not"),
            ({"size": np.asarray(0.0, np.float32)}, "size is 0.0, must be above 0"),
        ],
    )
    def test_a_frame_of_other_tensors_is_refused(self, tmp_path, change, message):
        frame = replace(frame_of(WordTable(*packed())), **change)
        with pytest.raises(BundleError, match=rf"text.safetensors: {message}"):
            write_text_bundle(tmp_path / "b", text_frame=frame.to_bytes())
        with pytest.raises(BundleError, match=r"text.safetensors: not a safetensors file"):
            write_text_bundle(tmp_path / "b", text_frame=b"12345678")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"outputs": 33}, "text_head of 33 x 24 exceeds the adapter's 32 x 64"),
            ({"inputs": 0}, "text_head.inputs"),
            ({"softcap": 0.0}, "text_head.softcap"),
            ({"file": "values.safetensors"}, "is 'values.safetensors', not a program's"),
            # Behind the scales there are three bytes.
            ({"scales": PLACE.scales + 4}, "text_head.words lie outside program.pte"),
            ({"codes": -1}, "text_head.words.codes"),
        ],
    )
    def test_what_the_manifest_says_of_it_is_checked(self, tmp_path, change, message):
        info = text_parts()["text_head"]
        own = {name: value for name, value in change.items() if hasattr(info, name)}
        place = {name: value for name, value in change.items() if name not in own}
        bad = replace(info, **own, words=replace(info.words, **place))
        with pytest.raises(BundleError, match=message):
            write_text_bundle(tmp_path / "b", text_head=bad)
        with pytest.raises(BundleError, match="text_head needs an adapter"):
            write_text_bundle(tmp_path / "b", adapter=None)

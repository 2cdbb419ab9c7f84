"""A run that learns terms of the upper blocks, on the exported tiny model: that it learns by them,
what it keeps, and that it ends on the same values whatever is done with it."""

from dataclasses import replace

import numpy as np
import pytest
from every_operation import check_every_operation
from film_run import World, film_rows
from seedtune.runtime import open_model
from seedtune.runtime.errors import JournalError, TuningError
from seedtune.runtime.estimators import StepContext, text_head_estimator
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import share
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring import text_part
from seedtune.runtime.scoring.batch_loss import Look
from seedtune.runtime.scoring.text_part import TextPart, generic_tokens
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values, load_values
from seedtune.runtime.scoring.word_memory import WORDS

SPEC = {"kind": "completion", "template": "{text}", "completion_field": "said"}
SETTINGS = {"lr": 0.003, "steps": 40, "batch_size": 8, "eval_every": 20, "remember": False}


@pytest.fixture(scope="module")
def world(bundle):
    found = World(bundle, SPEC, film_rows(64), film_rows(16, seed=1), SETTINGS)
    with found.engine:
        yield found


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run that nothing interrupted: its folder, history and values."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, *world.run(folder)


class TestLearning:
    def test_terms_learn_what_the_head_alone_does_not(self, world, tmp_path, whole):
        _, history, values = whole
        assert history.settings.estimator == "text-head"
        first, last = history.evaluations[0].loss, history.evaluations[-1].loss
        alone, head = world.run(tmp_path / "run", terms=False)
        assert last < alone.evaluations[-1].loss - 0.5 < first - 1.0
        assert len(head.part.own) == world.text.entries
        assert len(values.part.own) == world.text.entries + world.text.terms.entries
        np.testing.assert_array_equal(values.sensitive, world.start.values)

    def test_both_shares_of_it_lower_the_loss(self, world, whole):
        _, history, values = whole
        first, last = history.evaluations[0].loss, world.loss(values)
        assert last == pytest.approx(history.evaluations[-1].loss, rel=1e-6)
        split = world.text.entries
        for share_of in (slice(0, split), slice(split, None)):
            some = values.copy()
            some.part.own[share_of] = 0
            assert last + 0.2 < world.loss(some) < first - 0.2
        nothing = values.copy()
        nothing.part.own[:] = 0
        assert world.loss(nothing) == world.loss(Values(world.start.values))

    def test_with_a_memory_of_words_the_terms_are_the_same(self, world, tmp_path, whole):
        _, values = world.run(tmp_path / "run", remember=True)
        np.testing.assert_array_equal(values.part.weights, whole[2].part.weights)
        assert len(values.part.words) == WORDS and values.part.words.any()
        assert world.loss(values) < world.loss(whole[2])

    def test_terms_move_five_times_as_fast(self, world):
        """By the sign of their gradient: after one step all are as far from zero."""
        estimator = text_head_estimator.TextHeadEstimator(
            world.text.entries + world.text.terms.entries, world.text.terms.entries
        )
        own = np.zeros(estimator.entries, np.float32)
        values = Values(world.start.values, TextPart(world.text, own, deep=True))
        found = estimator.measure(world.look(), values, StepContext(0, 0))
        estimator.apply(values, found.scalars, StepContext(0, 0, lr=0.25))
        weights, terms = np.split(np.abs(own), [world.text.entries])
        np.testing.assert_allclose(weights, 0.25, rtol=1e-5)
        np.testing.assert_allclose(terms, 1.25, rtol=1e-5)

    def test_a_gradient_that_is_not_finite_is_not_taken(self, world, whole):
        entries, terms = len(whole[2].part.own), world.text.terms.entries
        estimator = text_head_estimator.TextHeadEstimator(entries, terms)
        estimator.state["moving"] = np.zeros(entries, np.float32)
        estimator.state["moving"][-terms:] = 1e30
        with np.errstate(all="ignore"):
            found = estimator.measure(world.look(), whole[2], StepContext(0, 0))
        assert found.scalars.dtype == np.float16 and np.isnan(found.scalars).all()


class TestGenericText:
    def test_its_tokens_are_those_whose_states_the_frame_holds(self, world):
        """Under terms of zero, but for the program's rounding; from the start of each row on."""
        text, values = world.text, world.start.values
        zeros = [np.zeros(shape, np.float32) for shape in text.terms.shapes]
        length = text.terms.part.tokens.shape[1]
        picked = np.array([5, 11, 5])
        found = generic_tokens(world.look(), values, text, zeros, picked, 2 * length + 9)
        wanted = [*(5 * length + np.arange(length)), *(11 * length + np.arange(length))]
        assert found.words.tolist() == [*wanted, *(5 * length + np.arange(9))]
        held = text.frame.states[found.words].astype(np.float32)
        apart = np.square(found.states - held).mean()
        other = np.square(found.states - np.roll(held, 1, axis=0)).mean()
        assert apart < 0.02 and apart < other / 20
        assert [len(each.parts) for each in found.inside.middles] == [len(found.words)]
        moved = [each + np.float32(0.1) for each in zeros]
        found = generic_tokens(world.look(), values, text, moved, picked, 2 * length + 9)
        assert np.square(found.states - held).mean() > 10 * apart

    def test_rows_longer_than_a_pass_are_cut(self, world):
        bounds = replace(world.bundle.bounds, length=12)
        look = Look(world.engine, world.task, bounds, world.train[:2])
        zeros = [np.zeros(shape, np.float32) for shape in world.text.terms.shapes]
        found = generic_tokens(look, world.start.values, world.text, zeros, np.array([1, 3]), 40)
        length = world.text.terms.part.tokens.shape[1]
        assert found.words.tolist() == [
            *(length + np.arange(12)), *(3 * length + np.arange(8 if length == 32 else 12)),
        ]  # fmt: skip

    def test_half_as_many_tokens_as_the_batch_has_or_32_and_the_same_ones_again(
        self, world, tmp_path, monkeypatch
    ):
        drawn = []

        def noted(look, values, head, terms, rows, count):
            found = generic_tokens(look, values, head, terms, rows, count)
            said = sum(len(each.positions) for each in look._examples)
            assert count == len(found.words) == max(32, round(said / 2))
            drawn.append(rows.tolist())
            return found

        monkeypatch.setattr(text_part, "generic_tokens", noted)
        world.run(tmp_path / "a", steps=6)
        first, drawn[:] = [*drawn], []
        assert len(first) == 6 and len({str(each) for each in first}) > 3
        world.run(tmp_path / "b", steps=2)
        world.run(tmp_path / "b", steps=6)  # resumed
        assert drawn == first
        drawn.clear()
        world.run(tmp_path / "c", steps=6, seed=9)
        assert drawn != first

    def test_without_terms_none_goes_through_the_program(self, world, tmp_path, monkeypatch):
        asked, real = [], type(world.engine).score

        def noted(self, batch, values, adapter=None, terms=(), *, inside=False):
            asked.append((len(terms), inside))
            return real(self, batch, values, adapter, terms, inside=inside)

        monkeypatch.setattr(type(world.engine), "score", noted)
        world.run(tmp_path / "a", steps=3, terms=False)
        assert set(asked) == {(0, False)}
        asked.clear()
        world.run(tmp_path / "b", steps=3)
        assert {(3, True), (3, False)} <= set(asked), "to learn and to evaluate"


class TestARun:
    def test_every_operation_ends_on_the_same_values(self, world, tmp_path):
        settings = {**SETTINGS, "steps": 100, "remember": True}
        check_every_operation(tmp_path, world.tuner, world.start, settings)

    def test_its_journal_says_how_many_there_are_and_is_not_shared(self, world, tmp_path, whole):
        journal = read_journal(whole[0])
        terms = world.text.terms.entries
        outputs, inputs = world.text.shape
        assert journal.header.part == {
            "kind": "text-adapter", "outputs": outputs, "inputs": inputs, "words": 0,
            "terms": terms,
        }  # fmt: skip
        assert journal.header.signs == world.text.entries + terms
        with pytest.raises(JournalError, match="single examples"):
            share(whole[0], tmp_path / "sent", world.start)

    @pytest.mark.parametrize("terms", [True, False])
    def test_whether_it_has_terms_stands_from_its_first_step_on(self, world, tmp_path, terms):
        world.run(tmp_path, steps=2, terms=terms)
        for allowed in (False, True):
            with pytest.raises(TuningError, match="terms"):
                world.tuner(tmp_path, settings={"terms": not terms}, allow_changes=allowed)
        history, values = world.run(tmp_path, steps=3, terms=terms)
        assert history.steps == 3 and values.part.deep == terms

    def test_its_values_go_through_a_file_and_answer_the_same(self, world, tmp_path, whole):
        export_values(tmp_path / "v", whole[2], world.bundle, step=40)
        found = load_values(tmp_path / "v", world.bundle, world.start.kinds)
        assert found.sha256 == whole[2].sha256 and found.part.deep
        assert world.loss(found) == world.loss(whole[2])
        with open_model(world.bundle, task=SPEC) as model:
            prompt = "A film about rain, love."
            written = ["".join(model.generate(prompt, max_tokens=6))]
            before = model.evaluate(film_rows(16, seed=1)).loss
            model.load(tmp_path / "v")
            assert model.evaluate(film_rows(16, seed=1)).loss == pytest.approx(world.loss(whole[2]))
            assert model.evaluate(film_rows(16, seed=1)).loss < before
            written.append("".join(model.generate(prompt, max_tokens=6)))
            assert written[0] != written[1]
            model.load(whole[0])
            assert "".join(model.generate(prompt, max_tokens=6)) == written[1]

    def test_a_text_is_as_likely_where_it_is_written_as_where_it_is_scored(self, world, whole):
        with open_model(world.bundle, task=SPEC) as model:
            model.load(whole[0])
            inputs = model.values.inputs
            assert len(inputs["terms"]) == 3
            tokens = model.prompt_tokens("A film about rain, love. It was")
            text = model.engine.text(model.values.sensitive, **inputs)
            likely = [text.read(tokens[:1]), *(text.read([each]) for each in tokens[1:-1])]
            for found, logits, token in zip(
                model.logprobs(tokens), likely, tokens[1:], strict=True
            ):
                own = logits[token] - np.logaddexp.reduce(logits.astype(np.float64))
                assert found.logprob == pytest.approx(own, abs=0.15)

    def test_a_part_of_other_terms_is_refused(self, world, whole):
        description = dict(whole[2].part.description)
        kind = world.start.kinds["text-adapter"]
        assert kind.restore(description, whole[2].part.own).deep
        with pytest.raises(ValueError, match=r"a text head of .* 8 numbers of terms, not"):
            kind.restore({**description, "terms": 8})
        with pytest.raises(ValueError, match=r"numbers of a text head, not"):
            kind.restore({**description, "terms": 0}, whole[2].part.own)
        del description["terms"]
        with pytest.raises(ValueError, match="terms"):
            kind.restore(description)

    def test_memory_for_them_is_counted(self, world, tmp_path, whole):
        part = whole[2].part
        alone = TextPart(part.head, part.own[: part.head.entries])
        below = world.text.terms
        assert part.memory_bytes - alone.memory_bytes == below.memory_bytes
        weights = 4 * sum(matrix.whole().size for matrix in below.matrices)
        assert below.memory_bytes > 2 * weights + 4 * 3 * below.entries

    def test_replay_makes_the_values_without_the_program(self, world, whole):
        assert replay(whole[0], world.start).sha256 == whole[2].sha256

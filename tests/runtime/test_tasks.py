"""Tasks: rows become the right tokens, losses and metrics equal their definitions."""

import string
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import DataError, SeedtuneWarning
from seedtune.runtime.scoring.answer_head import AnswerHead
from seedtune.runtime.tasks import (
    check_spec,
    encode_rows,
    read_rows,
    task_for,
    task_from_spec,
    warn_of_examples,
)
from seedtune.runtime.tasks.rows import Row
from tiny_bundle import BOUNDS, TASK, tiny_tokenizer, write_tiny_bundle
from tokenizers import Tokenizer, processors

TOKENIZER = tiny_tokenizer()
CHOICE = {
    "kind": "multiple_choice",
    "template": "{premise} so",
    "choice_fields": ["choice1", "choice2"],
    "label_field": "label",
}
COMPLETION = {"kind": "completion", "template": "{prompt}", "completion_field": "completion"}
PAD = 0


def make(spec, bounds=BOUNDS, **options):
    return task_from_spec(spec, options.pop("tokenizer", TOKENIZER), bounds, PAD, **options)


def ids(text):
    return list(TOKENIZER.encode(text).ids)


def random_logp(batch, probes=3):
    rng = np.random.default_rng(0)
    shape = (probes, *batch.candidates.shape)
    return -rng.exponential(2.0, shape).astype(np.float32)


class TestClassification:
    def test_scores_the_label_words_after_the_prompt(self):
        example = make(TASK).encode({"text": "the plot", "label": 1}, "f:1")
        assert example.tokens.tolist() == [ids("the plot It was")]
        assert example.positions.tolist() == [[0, example.length - 1]]
        assert example.candidates.tolist() == [[ids(" terrible")[0], ids(" great")[0]]]
        assert example.gold == 1

    def test_demonstrations_stand_in_front_of_every_prompt(self):
        shown = [{"text": "the film", "label": 1}, {"text": "a dull plot", "label": "0"}]
        task = make({**TASK, "demonstrations": shown}, Bounds(1, 2, 64, 4, 2))
        front = "the film It was great\na dull plot It was terrible\n"
        example = task.encode({"text": "the plot", "label": 1}, "f:1")
        assert example.tokens.tolist() == [ids(f"{front}the plot It was")]
        assert example.positions.tolist() == [[0, example.length - 1]]
        assert example.candidates.tolist() == [[ids(" terrible")[0], ids(" great")[0]]]

    def test_long_rows_are_cut_and_demonstrations_are_not(self):
        shown = [{"text": "the film", "label": 1}]
        front = ids("the film It was great\n")
        bounds = Bounds(1, 2, len(front) + 5, 4, 2)
        task = make({**TASK, "demonstrations": shown}, bounds, on_long="truncate")
        example = task.encode({"text": "the plot was good and the film dull"}, "f", labelled=False)
        assert example.tokens[0, : len(front)].tolist() == front
        assert example.length <= bounds.length
        with pytest.raises(DataError, match="task: the demonstrations alone have"):
            make({**TASK, "demonstrations": shown * 3}, bounds, on_long="truncate")

    @pytest.mark.parametrize(
        ("shown", "error"),
        [
            ([], "'demonstrations' must be a list of rows, such as"),
            ("the film", "must be a list of rows.*not 'the film'"),
            (["the film"], "must hold objects, not 'the film'"),
            ([{"text": "the film"}], "task: demonstration 1.*'label'"),
            ([{"text": "a", "label": 1}, {"label": 1}], "task: demonstration 2.*'text'"),
            ([{"text": "a", "label": 7}], "task: demonstration 1: unknown label '7'"),
        ],
    )
    def test_demonstrations_that_make_no_sense(self, shown, error):
        spec = {**TASK, "demonstrations": shown}
        with pytest.raises(DataError, match=error):
            check_spec(spec)
            make(spec)

    def test_loss_is_the_cross_entropy_of_renormalised_label_words(self):
        task = make(TASK)
        batch = task.collate(
            [task.encode({"text": "the", "label": label}, "f:1") for label in ("1", "0", "1")]
        )
        logp = random_logp(batch)
        share = np.exp(logp.astype(np.float64))
        share /= share.sum(axis=2, keepdims=True)
        expected = -np.log(share[:, [0, 1, 2], [1, 0, 1]])
        np.testing.assert_allclose(task.losses(logp, batch), expected, rtol=1e-12)

    def test_metric_and_prediction(self):
        task = make(TASK)
        batch = task.collate([task.encode({"text": "the", "label": "1"}, "f:1")] * 3)
        logp = np.log(np.array([[0.1, 0.3], [0.4, 0.1], [0.1, np.nan]], dtype=np.float32))
        assert task.metric(logp, batch).tolist() == [[1, 1], [0, 1], [0, 1]]
        answers = task.predict(logp[:2], batch)
        assert [answer.answer for answer in answers] == ["1", "0"]
        assert answers[0].scores == pytest.approx({"0": 0.25, "1": 0.75})

    @pytest.mark.parametrize(
        ("label", "gold"),
        [(1, 1), ("1", 1), (0, 0), (1.0, 1), ("1.0", 1), ("0.00", 0), (np.int64(1), 1)],
    )
    def test_labels_compare_as_text_and_whole_numbers_as_integers(self, label, gold):
        assert make(TASK).encode({"text": "the", "label": label}, "f:1").gold == gold

    def test_a_label_that_looks_like_a_number_is_first_of_all_text(self):
        spec = TASK | {"verbalisers": {"1": " bad", "1.0": " good"}}
        assert make(spec).encode({"text": "the", "label": 1.0}, "f:1").gold == 1

    @pytest.mark.parametrize("label", [None, float("nan"), np.float64("nan")])
    def test_a_label_that_is_left_empty_is_refused_with_the_remedy(self, label):
        with pytest.raises(DataError, match=r"^f:1: field 'label' is .*leave the row out$"):
            make(TASK).encode({"text": "the", "label": label}, "f:1")

    def test_many_labels_are_not_all_shown(self):
        spec = TASK | {"verbalisers": {f"l{n}": string.punctuation[n] for n in range(30)}}
        with pytest.raises(DataError, match=r"known labels: l0, .*, and 10 more$"):
            make(spec).encode({"text": "the", "label": "x"}, "f:1")

    @pytest.mark.parametrize("label", ["01", " 1", True, 1.5, "1.00.0", -1.0])
    def test_labels_that_only_mean_the_same_are_unknown(self, label):
        with pytest.raises(DataError, match="unknown label"):
            make(TASK).encode({"text": "the", "label": label}, "f:1")

    def test_booleans_are_written_as_json_does(self):
        spec = TASK | {"verbalisers": {"false": " terrible", "true": " great"}}
        for label in (True, "True", "TRUE", "true", np.bool_(True)):
            assert make(spec).encode({"text": "the", "label": label}, "f:1").gold == 1

    def test_unknown_label_names_row_label_and_known_labels(self):
        with pytest.raises(DataError, match=r"^f:7: unknown label 'x'; known labels: 0, 1$"):
            make(TASK).encode({"text": "the", "label": "x"}, "f:7")

    def test_prediction_needs_no_label(self):
        assert make(TASK).encode({"text": "the"}, "f:1", labelled=False).gold == -1
        with pytest.raises(DataError, match="f:1: field 'label' is missing"):
            make(TASK).encode({"text": "the"}, "f:1")

    def test_labels_with_the_same_first_token_are_refused(self):
        spec = TASK | {"verbalisers": {"0": " great", "1": " great film"}}
        with pytest.raises(DataError, match="two labels begin with the same token"):
            make(spec).encode({"text": "the", "label": "1"}, "f:1")

    def test_a_verbaliser_that_merges_into_the_prompt_is_refused(self):
        spec = TASK | {"template": "{text} It was grea", "verbalisers": {"0": "t", "1": " bad"}}
        assert ids("It was great")[-1] == ids(" great")[0]  # the trap is real
        with pytest.warns(SeedtuneWarning, match="'t' follows 'a It was grea' without a space"):
            task = make(spec)
        with pytest.raises(DataError, match="f:1: verbaliser 't' merges"):
            task.encode({"text": "the", "label": "1"}, "f:1")

    def test_leading_special_tokens_are_kept(self):
        with_bos = Tokenizer.from_str(TOKENIZER.to_str())
        with_bos.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
        example = make(TASK, tokenizer=with_bos).encode({"text": "the", "label": "1"}, "f:1")
        assert example.tokens.tolist() == [[1, *ids("the It was")]]
        assert example.candidates.tolist() == [[ids(" terrible")[0], ids(" great")[0]]]

    def test_braces_in_the_text_stay_text(self):
        example = make(TASK | {"template": "{{{text}}}"}).encode(
            {"text": "{label}", "label": "1"}, "f:1"
        )
        assert TOKENIZER.decode(example.tokens[0]) == "{{label}}"


class TestMultipleChoice:
    row: ClassVar = {
        "premise": "the film was bad",
        "choice1": "I left",
        "choice2": "dull and the plot",
    }

    def test_each_choice_is_a_row_scored_whole(self):
        example = make(CHOICE).encode(self.row | {"label": 0}, "f:1")
        prompt = len(ids("the film was bad so"))
        rows = [ids("the film was bad so I left"), ids("the film was bad so dull and the plot")]
        assert example.rows == 2
        for index, row in enumerate(rows):
            assert example.tokens[index, : len(row)].tolist() == row
            assert (example.tokens[index, len(row) :] == PAD).all()
        expected = [(r, c) for r, row in enumerate(rows) for c in range(prompt - 1, len(row) - 1)]
        assert [tuple(p) for p in example.positions] == expected
        # Each candidate is the token after its position.
        after = [[rows[r][c + 1]] for r, c in expected]
        assert example.candidates.tolist() == after

    def test_loss_metric_and_answer_use_the_mean_log_probability(self):
        task = make(CHOICE)
        examples = [task.encode(self.row | {"label": label}, "f:1") for label in (1, 0)]
        batch = task.collate(examples)
        logp = random_logp(batch)
        first = [int((e.positions[:, 0] == 0).sum()) for e in examples]
        sizes = [n for e, a in zip(examples, first, strict=True) for n in (a, len(e.positions) - a)]
        means = []
        start = 0
        for size in sizes:
            means.append(logp[:, start : start + size, 0].astype(np.float64).mean(axis=1))
            start += size
        scores = np.stack(means, axis=1).reshape(3, 2, 2)
        share = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
        np.testing.assert_allclose(
            task.losses(logp, batch), -np.log(share[:, [0, 1], [1, 0]]), rtol=1e-9
        )
        best = share[0].argmax(axis=1)
        assert task.metric(logp[0], batch)[:, 0].tolist() == [best[0] == 1, best[1] == 0]
        answers = task.predict(logp[0], batch)
        assert [a.answer for a in answers] == [str(b) for b in best]
        assert answers[1].scores["1"] == pytest.approx(share[0, 1, 1])

    def test_a_space_is_put_only_where_none_is(self):
        with pytest.warns(SeedtuneWarning, match="ends in a blank"):
            task = make(CHOICE | {"template": "{premise} so "})
        spaced = task.encode(self.row | {"label": 0}, "f:1")
        end = spaced.positions[spaced.positions[:, 0] == 0][-1, 1] + 2
        assert TOKENIZER.decode(spaced.tokens[0, :end]) == "the film was bad so I left"

    @pytest.mark.parametrize("label", ["2", "-1", "", "one"])
    def test_unknown_choice(self, label):
        with pytest.raises(DataError, match=r"f:2: unknown label .*; known labels: 0, 1"):
            make(CHOICE).encode(self.row | {"label": label}, "f:2")


class TestCompletion:
    def test_every_token_of_the_completion_is_scored(self):
        example = make(COMPLETION).encode({"prompt": "the film", "completion": " was bad"}, "f:1")
        assert example.tokens.tolist() == [ids("the film was bad")]
        start = len(ids("the film"))
        assert example.positions[:, 1].tolist() == list(range(start - 1, example.length - 1))
        assert example.candidates[:, 0].tolist() == ids("the film was bad")[start:]

    def test_after_an_empty_prompt_all_but_the_first_token_are_scored(self):
        task = make(COMPLETION | {"template": ""})
        example = task.encode({"completion": "the film was bad"}, "f:1")
        assert example.candidates[:, 0].tolist() == ids("the film was bad")[1:]

    def test_loss_is_the_mean_and_perplexity_weighs_tokens(self):
        task = make(COMPLETION)
        rows = [("the film", " was bad"), ("the", " plot was good and dull")]
        examples = [task.encode({"prompt": p, "completion": c}, "f:1") for p, c in rows]
        batch = task.collate(examples)
        logp = random_logp(batch)
        border = len(examples[0].positions)
        nll = -logp[:, :, 0].astype(np.float64)
        expected = np.stack([nll[:, :border].mean(1), nll[:, border:].mean(1)], axis=1)
        np.testing.assert_allclose(task.losses(logp, batch), expected, rtol=1e-9)
        totals = task.metric(logp[0], batch).sum(axis=0)
        assert task.aggregate(totals) == pytest.approx(np.exp(nll[0].mean()))
        answer = task.predict(logp[0], batch)[1]
        assert answer.answer is None
        assert answer.scores["nll"] == pytest.approx(expected[0, 1])

    @pytest.mark.parametrize("text", ["", None])
    def test_an_empty_completion_is_refused(self, text):
        with pytest.raises(DataError, match="f:9"):
            make(COMPLETION).encode({"prompt": "the", "completion": text}, "f:9")


class TestEnd:
    """Of a text to learn: the model's own end stands behind it."""

    ROW: ClassVar = {"prompt": "the film", "completion": " was great"}

    def scored(self, row=None, bounds=BOUNDS, **options):
        spec = {**COMPLETION, **options.pop("spec", {})}
        example = make(spec, bounds, ends=(7, 1), **options).encode(row or self.ROW, "row")
        found: list[int] = example.candidates[:, 0].tolist()
        assert example.tokens[0, -1] == found[-1]
        return found

    def test_the_first_of_the_model_s_ends_is_scored_behind_the_text(self):
        assert self.scored() == [*ids(" was great"), 7]

    @pytest.mark.parametrize("text", ["", "the plot"])
    def test_without_it_all_else_is_as_it_was(self, text):
        row = {"prompt": text, "completion": " was great"}
        plain = make(COMPLETION).encode(row, "row")
        off = make({**COMPLETION, "end": False}, ends=(7,)).encode(row, "row")
        on = make({**COMPLETION, "end": True}, ends=(7,)).encode(row, "row")
        for name in ("tokens", "positions", "candidates"):
            np.testing.assert_array_equal(getattr(off, name), getattr(plain, name))
        np.testing.assert_array_equal(on.candidates[:-1], plain.candidates)
        np.testing.assert_array_equal(on.tokens[:, :-1], plain.tokens)

    def test_an_end_that_the_tokenizer_put_there_stays_the_only_one(self):
        ending = Tokenizer.from_str(TOKENIZER.to_str())
        ending.post_processor = processors.TemplateProcessing("$A <bos>", None, [("<bos>", 1)])
        assert self.scored(tokenizer=ending) == [*ids(" was great"), 1]

    @pytest.mark.parametrize("prompt", ["", "{prompt}"])
    def test_a_text_that_was_cut_has_not_ended(self, prompt):
        row = {**self.ROW, "completion": " was great" * 40}
        found = self.scored(row, on_long="truncate", spec={"template": prompt})
        assert 7 not in found and len(found) < BOUNDS.length
        fitting = {**self.ROW, "completion": " great" * 3}
        assert self.scored(fitting, on_long="truncate", spec={"template": prompt})[-1] == 7

    def test_a_text_that_fills_the_bound_is_cut_for_its_end_s_sake(self):
        row = {"prompt": "", "completion": "x" * BOUNDS.length}
        short = {"prompt": "", "completion": "x" * (BOUNDS.length - 1)}
        spec = {"template": ""}
        with pytest.raises(DataError, match=f"{BOUNDS.length + 1} tokens exceed"):
            self.scored(row, spec=spec)
        assert 7 not in self.scored(row, on_long="truncate", spec=spec)
        assert self.scored(short, spec=spec)[-1] == 7

    def test_a_model_without_an_end_learns_none(self):
        task = make(COMPLETION)
        assert not task.ends and make(COMPLETION, ends=(7,)).ends
        with pytest.raises(DataError, match=r'^task: "end" is true, but the model names no token'):
            make({**COMPLETION, "end": True})
        with pytest.raises(DataError, match="field 'end' must be true or false, not 'no'"):
            check_spec({**COMPLETION, "end": "no"})


class TestObserve:
    """Scores without a readout and the readout's part, as ``losses`` and ``predict`` see them."""

    three: ClassVar = TASK | {"verbalisers": {"0": " bad", "1": " good", "2": " so"}}
    choice: ClassVar = CHOICE | {"choice_fields": ["choice1", "choice2", "choice3"]}

    def examples(self, task, seed, count):
        rng = np.random.default_rng(seed)
        words = ["the", "film", "was", "great", "and", "dull", "plot", "bad"]

        def text():
            return " ".join(rng.choice(words, size=rng.integers(1, 6)))

        return [
            task.encode(
                {"text": text(), "premise": text(), "choice1": text(), "choice2": text(),
                 "choice3": text(), "label": int(rng.integers(task.answers))},
                "f:1",
            )
            for _ in range(count)
        ]  # fmt: skip

    @pytest.mark.parametrize("spec", [TASK, three, CHOICE, choice])
    @given(seed=st.integers(0, 999), count=st.integers(1, 6))
    @settings(deadline=None, max_examples=30)
    def test_its_scores_are_those_that_losses_and_answers_follow(self, spec, seed, count):
        wide = Bounds(probes=2, rows=64, length=32, positions=400, candidates=4)
        task = make(spec, wide)
        batch = task.collate(self.examples(task, seed, count))
        rng = np.random.default_rng(seed)
        logp = -rng.exponential(2.0, (1, *batch.candidates.shape)).astype(np.float32)
        inputs = rng.standard_normal((1, len(batch.positions), 6)).astype(np.float32)
        inputs[:, :, -1] = 1
        weights = rng.standard_normal((task.head_rows, 6)).astype(np.float32)
        seen = task.observe(logp[0], inputs[0], batch)
        assert seen.gold.tolist() == batch.gold.tolist()
        assert seen.features.shape == (count, task.answers // task.head_rows, 6)
        np.testing.assert_allclose(seen.features[:, :, -1], 1, rtol=1e-6)
        scores = seen.scores + (seen.features @ weights.T).reshape(count, task.answers)
        labels = task.labels if task.head_rows > 1 else ()
        whole = AnswerHead(labels, 5, np.append(weights, np.float32(0))).added(logp, inputs)
        losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(count), batch.gold]
        np.testing.assert_allclose(task.losses(whole, batch)[0], losses, atol=1e-4)
        shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])
        answers = [list(answer.scores.values()) for answer in task.predict(whole[0], batch)]
        np.testing.assert_allclose(answers, shares, atol=1e-4)

    def test_choices_of_different_lengths_weigh_alike(self):
        """A feature that is the same at every token of a choice is that number."""
        task = make(CHOICE)
        row = {"premise": "the", "choice1": "I", "choice2": "dull and the plot", "label": 1}
        batch = task.collate([task.encode(row, "f:1")])
        assert len(batch.positions) > 2
        inputs = np.ones((len(batch.positions), 2), np.float32)
        inputs[:, 0] = np.where(batch.row_of == 0, 5, 7)
        logp = np.zeros((len(batch.positions), 1), np.float32)
        assert task.observe(logp, inputs, batch).features[0, :, 0].tolist() == [5, 7]

    def test_a_task_without_a_choice_has_nothing_to_observe(self):
        task = make(COMPLETION)
        assert (task.answers, task.head_rows) == (0, 0)


class TestBounds:
    def test_too_long_names_row_tokens_bound_and_remedy(self):
        text = "the film was great and " * 10
        count = len(ids(text + " It was"))
        with pytest.raises(DataError, match=rf"f:4: {count} tokens .*truncate.*length {count}"):
            make(TASK).encode({"text": text, "label": "1"}, "f:4")

    def test_truncation_keeps_the_template_and_the_start_of_the_text(self):
        text = "the film was great and " * 10
        example = make(TASK, on_long="truncate").encode({"text": text, "label": "1"}, "f:4")
        kept = TOKENIZER.decode(example.tokens[0])
        assert kept.endswith(" It was")
        assert text.startswith(kept.removesuffix(" It was"))
        assert BOUNDS.length - 3 <= example.length <= BOUNDS.length

    def test_the_longest_field_gives_way(self):
        spec = TASK | {"template": "{text} because {why} It was"}
        row = {"text": "the plot", "why": "the film was great and " * 10, "label": "1"}
        example = make(spec, on_long="truncate").encode(row, "f:4")
        assert TOKENIZER.decode(example.tokens[0]).startswith("the plot because the film")

    def test_choices_are_never_cut(self):
        row = {"premise": "the film was great and " * 10, "choice1": "I left", "choice2": "bad"}
        example = make(CHOICE, on_long="truncate").encode(row | {"label": 0}, "f:4")
        assert example.length <= BOUNDS.length
        assert TOKENIZER.decode(example.tokens[0]).endswith(" so I left")

    def test_a_long_completion_gives_way_before_the_prompt(self):
        row = {"prompt": "the film", "completion": " was great and dull" * 20}
        example = make(COMPLETION, on_long="truncate").encode(row, "f:4")
        assert example.length <= BOUNDS.length
        assert TOKENIZER.decode(example.tokens[0]).startswith("the film was great")

    def test_a_template_that_is_too_long_by_itself(self):
        spec = TASK | {"template": "{text}" + " the film was great" * 20}
        with pytest.raises(DataError, match="f:4: the template and the answer alone have"):
            make(spec, on_long="truncate").encode({"text": "x" * 50, "label": "1"}, "f:4")

    def test_what_one_example_may_need(self):
        one_row = Bounds(probes=1, rows=1, length=32, positions=2, candidates=1)
        row = {"premise": "a", "choice1": "b", "choice2": "the film was great " * 4, "label": 0}
        with pytest.raises(DataError, match=r"f:1: needs \d+ tokens in its rows, .* bound is 32"):
            make(CHOICE, one_row).encode(row, "f:1")
        with pytest.raises(DataError, match="f:1: needs 2 candidates"):
            make(TASK, one_row).encode({"text": "the", "label": "1"}, "f:1")
        with pytest.raises(DataError, match=r"f:1: needs \d+ positions"):
            make(COMPLETION, one_row).encode(
                {"prompt": "the", "completion": " film was great and"}, "f:1"
            )


class TestTooLong:
    """Rows beyond the program's length: all of them are counted, and what to do is said."""

    LONG = "film " * 40

    def rows(self, *texts):
        return [{"text": text, "label": "1"} for text in texts]

    def test_several_are_counted_and_the_longest_says_how_long(self):
        rows = self.rows("a", self.LONG, "b", self.LONG * 2, self.LONG, *["c"] * 90, self.LONG)
        longest = len(ids(f"{self.LONG * 2} It was"))
        match = (
            rf"^4 of 96 rows are too long \(row 2, row 4, row 5, \.\.\.\): {longest} tokens exceed"
            rf".*--length {longest}$"
        )
        with pytest.raises(DataError, match=match):
            encode_rows(make(TASK), rows)
        found = encode_rows(make(TASK, on_long="truncate"), rows)
        assert len(found) == 96 and max(each.length for each in found) <= BOUNDS.length

    def test_another_defect_is_named_at_its_row(self):
        rows = [*self.rows(self.LONG), {"label": "1"}]
        with pytest.raises(DataError, match=r"^row 2: field 'text' is missing"):
            encode_rows(make(TASK), rows)


class TestCollate:
    def test_positions_point_at_the_same_tokens_after_padding(self):
        task = make(CHOICE)
        rows = [
            {"premise": "the", "choice1": "bad", "choice2": "good and great", "label": 0},
            {"premise": "the film was great", "choice1": "I", "choice2": "dull", "label": 1},
        ]
        examples = [task.encode(row, "f:1") for row in rows]
        batch = task.collate(examples)
        assert batch.examples == 2
        assert batch.tokens.shape == (4, max(example.length for example in examples))
        assert batch.gold.tolist() == [0, 1]
        flat = batch.tokens.reshape(-1)
        # Choices end their rows, so the token after each position is its candidate.
        assert flat[batch.positions + 1].tolist() == batch.candidates[:, 0].tolist()
        assert batch.row_of.tolist() == sorted(batch.row_of.tolist())

    def test_at_least_two_tokens_long(self):
        task = make(TASK | {"template": "{text}"})
        example = task.encode({"text": "the", "label": "1"}, "f:1")
        assert example.length == 1
        batch = task.collate([example])
        assert batch.tokens.tolist() == [[*ids("the"), PAD]]
        assert batch.positions.tolist() == [0]


class TestSpecification:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kind": "regression"}, "kind 'regression' is unknown; kinds: classification, mult"),
            ({"kind": "Multiple choice"}, "is unknown; did you mean 'multiple_choice'"),
            ({"kind": []}, "field 'kind' must be text, not a list; kinds: "),
            ({"kind": None}, "field 'kind' must be text, not null"),
            ({"extra": 1}, "field 'extra' of a classification task is unknown; fields: template"),
            ({3: 1}, "field '3' of a classification task is unknown"),
            ({"template": 3}, "'template' must be text, not the number 3"),
            ({"template": None}, "'template' must be text, not null"),
            ({"template": "{text"}, "template '{text'"),
            ({"template": "{text!r}"}, "not a plain field name"),
            ({"template": "{text.__class__}"}, "not a plain field name"),
            ({"template": "{}"}, "not a plain field name"),
            ({"template": "\ud83d {text}"}, "'template' holds half a character, .* at place 0"),
            ({"label_field": " "}, "'label_field' is empty; name a field"),
            ({"label_field": {"a": 1}}, "'label_field' must be text, not an object"),
            ({"verbalisers": [" a", " b"]}, "'verbalisers' must be an object such as .*not a list"),
            ({"verbalisers": {}}, "at least two labels"),
            ({"verbalisers": {"0": " a"}}, "at least two labels"),
            ({"verbalisers": {"0": " a", "1": 2}}, "must hold text only, not the number 2"),
            ({"verbalisers": {"0": " a", "1": ""}}, "the word for label '1' .* is empty"),
            ({"verbalisers": {"0": " a", "1": " "}}, "the word for label '1' .* is empty"),
            ({"verbalisers": {"0": " a", "1": " a"}}, "'1' .* is that of label '0', too: ' a'"),
            ({"verbalisers": {"0": " a", "1": "\udc00"}}, "label '1' .* holds half a character"),
        ],
    )
    def test_a_wrong_field_is_named(self, change, message):
        with pytest.raises(DataError, match=rf"^task: .*{message}"):
            check_spec(TASK | change)
        with pytest.raises(DataError, match=message):
            make(TASK | change)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ("choice1", "'choice_fields' must be a list, not 'choice1'"),
            (["a"], "at least two fields"),
            (["a", ""], "'choice_fields' is empty"),
            (["a", 1], "must hold text only, not the number 1"),
            (["a", "b", "a"], "names 'a' twice"),
        ],
    )
    def test_wrong_choices(self, fields, message):
        with pytest.raises(DataError, match=message):
            check_spec(CHOICE | {"choice_fields": fields})

    def test_a_missing_field_is_named(self):
        with pytest.raises(DataError, match="field 'template' of a classification task is missing"):
            make({name: value for name, value in TASK.items() if name != "template"})
        with pytest.raises(DataError, match="field 'kind' is missing; kinds: classification"):
            check_spec({})

    @pytest.mark.parametrize("field", ["template", "label_field", "verbalisers"])
    def test_a_misspelt_field_gets_the_right_one(self, field):
        wrong = field.replace("s", "z").replace("la", "al").replace("temp", "Temp")
        spec = {name: value for name, value in TASK.items() if name != field}
        with pytest.raises(DataError, match=f"'{wrong}' .* is unknown; did you mean '{field}'?"):
            check_spec(spec | {wrong: TASK[field]})

    def test_an_unknown_way_with_long_texts(self):
        with pytest.raises(DataError, match="on_long 'cut' is unknown; use error or truncate"):
            make(TASK, on_long="cut")

    def test_a_bundle_brings_its_task_or_another_is_given(self, tmp_path):
        bundle = write_tiny_bundle(tmp_path / "own")
        assert task_for(bundle).labels == ("0", "1")
        assert task_for(bundle, COMPLETION).metric_name == "perplexity"
        with pytest.raises(DataError, match=r"has no task; give one .--task NAME"):
            task_for(write_tiny_bundle(tmp_path / "none", task=None))


class TestRows:
    def test_a_row_is_named_by_its_number_or_by_where_it_stands(self):
        task = make(TASK)
        good, bad = {"text": "the", "label": 1}, {"text": "the", "label": 7}
        assert [example.gold for example in encode_rows(task, iter([good, good]))] == [1, 1]
        assert encode_rows(task, [good], labelled=False)[0].gold == -1
        with pytest.raises(DataError, match=r"^row 2: unknown label '7'"):
            encode_rows(task, [good, bad])
        with pytest.raises(DataError, match=r"^--text: unknown label '7'"):
            encode_rows(task, [Row(bad, "--text")])
        with pytest.raises(DataError, match=r"^sst2 row 2: unknown label '7'"):
            encode_rows(task, read_rows([good, bad], "sst2 row"))

    def test_half_an_emoji_names_row_and_field(self):
        for task, row, field in (
            (make(TASK), {"text": "so \ud83d", "label": 1}, "text"),
            (make(TASK), {"text": "so", "label": "\ud83d"}, "label"),
            (make(COMPLETION), {"prompt": "", "completion": "\udc80"}, "completion"),
        ):
            message = rf"^row 1: field '{field}' holds half a character, '.u\w{{4}}' at place \d"
            with pytest.raises(DataError, match=message):
                encode_rows(task, [row])

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (float("inf"), "must be text or a number, not the number inf"),
            (10**400, "not a number of many digits"),
            ([[[]]], "not a list"),
            ({"a": 1}, "not an object"),
            (b"the", "not of type bytes"),
        ],
    )
    def test_what_is_no_text(self, value, message):
        with pytest.raises(DataError, match=rf"^row 1: field 'text' .*{message}$"):
            encode_rows(make(TASK), [{"text": value, "label": 1}])

    def test_numpy_numbers_are_text_as_pythons(self):
        task = make(TASK)
        rows: list[dict[str, Any]] = [
            {"text": np.float32(0.5), "label": np.int8(1)},
            {"text": 0.5, "label": 1},
        ]
        first, second = encode_rows(task, rows)
        assert first.tokens.tolist() == second.tokens.tolist()

    def test_a_missing_field_says_what_is_there(self):
        row = {f"f{n:02}": 1 for n in range(20)} | {"a\nb": 1}
        with pytest.raises(DataError, match=r"fields there: 'a.nb', f00, .*, f10 and 9 more\)$"):
            encode_rows(make(TASK), [row])


class TestTraps:
    def told(self, spec):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make(spec)
        assert all(one.category is SeedtuneWarning for one in caught)
        return [str(one.message) for one in caught]

    def test_sound_tasks_are_silent(self):
        for spec in (TASK, CHOICE, COMPLETION, COMPLETION | {"template": "{prompt}\n"}):
            assert self.told(spec) == []
        template = "{text}\nYes or No?\n"
        assert self.told(TASK | {"template": template, "verbalisers": {"0": "N", "1": "Y"}}) == []
        assert self.told(TASK | {"template": "{text} (", "verbalisers": {"0": "N", "1": "Y"}}) == []

    def test_words_without_their_space(self):
        (told, *_) = self.told(TASK | {"verbalisers": {"0": "B", "1": "G"}})
        assert "'B' follows 'a It was' without a space; write ' B', ' G'" in told

    def test_scripts_without_spaces_between_words(self):
        spec = TASK | {"template": "{text}这部电影", "verbalisers": {"0": "烂", "1": "好"}}
        assert not any("without a space" in told for told in self.told(spec))

    def test_empty_texts(self):
        spec = TASK | {"template": "{text} {more} It was"}
        rows = [{"text": "the", "more": ""}, {"text": " ", "more": ""}, {"text": "", "more": "\n"}]
        with pytest.warns(SeedtuneWarning, match="^row 2 and 1 more rows: no text in text, more;"):
            encode_rows(make(spec), rows, labelled=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encode_rows(make(COMPLETION | {"template": ""}), [{"completion": "the plot"}])

    def test_sound_rows_are_silent(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            task = make(TASK)
            rows = [{"text": text, "label": n} for n, text in enumerate(["the", "a"])]
            warn_of_examples(task, encode_rows(task, rows), [])
            warn_of_examples(task, [], encode_rows(task, rows[:1]))
            replies = [{"prompt": "a", "completion": " b"}, {"prompt": "a", "completion": " c"}]
            answers = make(COMPLETION)
            warn_of_examples(answers, encode_rows(answers, replies[:1]), [])
            one, other = encode_rows(answers, replies)
            warn_of_examples(answers, [one], [other])


def test_the_shortest_row_can_be_encoded():
    for spec in (TASK, CHOICE, COMPLETION):
        task = make(spec)
        assert task.encode(task.shortest_row(), "f:1").gold == 0

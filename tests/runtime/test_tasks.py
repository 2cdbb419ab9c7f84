"""Tasks: rows become the right tokens, losses and metrics equal their definitions."""

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import DataError
from seedtune.runtime.scoring.answer_head import add_head
from seedtune.runtime.tasks import Encoded, Task, task_from_spec
from tiny_bundle import BOUNDS, TASK, tiny_tokenizer
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


def make(spec: dict[str, Any], bounds: Bounds = BOUNDS, **options: Any) -> Task:
    return task_from_spec(spec, options.pop("tokenizer", TOKENIZER), bounds, PAD, **options)


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def random_logp(batch: Any, probes: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    shape = (probes, *batch.candidates.shape)
    return -rng.exponential(2.0, shape).astype(np.float32)


class TestClassification:
    def test_scores_the_label_words_after_the_prompt(self) -> None:
        example = make(TASK).encode({"text": "the plot", "label": 1}, "f:1")
        assert example.tokens.tolist() == [ids("the plot It was")]
        assert example.positions.tolist() == [[0, example.length - 1]]
        assert example.candidates.tolist() == [[ids(" terrible")[0], ids(" great")[0]]]
        assert example.gold == 1

    def test_loss_is_the_cross_entropy_of_renormalised_label_words(self) -> None:
        task = make(TASK)
        batch = task.collate(
            [task.encode({"text": "the", "label": label}, "f:1") for label in ("1", "0", "1")]
        )
        logp = random_logp(batch)
        share = np.exp(logp.astype(np.float64))
        share /= share.sum(axis=2, keepdims=True)
        expected = -np.log(share[:, [0, 1, 2], [1, 0, 1]])
        np.testing.assert_allclose(task.losses(logp, batch), expected, rtol=1e-12)
        whole = make(TASK, objective="vocabulary").losses(logp, batch)
        np.testing.assert_array_equal(whole, -logp[:, [0, 1, 2], [1, 0, 1]].astype(np.float64))

    def test_metric_and_prediction(self) -> None:
        task = make(TASK)
        batch = task.collate([task.encode({"text": "the", "label": "1"}, "f:1")] * 3)
        logp = np.log(np.array([[0.1, 0.3], [0.4, 0.1], [np.nan, 0.1]], dtype=np.float32))
        assert task.metric(logp, batch).tolist() == [[1, 1], [0, 1], [0, 1]]
        answers = task.predict(logp[:2], batch)
        assert [answer.answer for answer in answers] == ["1", "0"]
        assert answers[0].scores == pytest.approx({"0": 0.25, "1": 0.75})

    def test_a_true_nan_is_never_a_right_answer(self) -> None:
        task = make(TASK)
        batch = task.collate([task.encode({"text": "the", "label": "0"}, "f:1")])
        logp = np.full((1, 2), np.nan, dtype=np.float32)
        assert task.metric(logp, batch).tolist() == [[0, 1]]

    @pytest.mark.parametrize(("label", "gold"), [(1, 1), ("1", 1), (0, 0)])
    def test_labels_compare_as_text(self, label: Any, gold: int) -> None:
        assert make(TASK).encode({"text": "the", "label": label}, "f:1").gold == gold

    @pytest.mark.parametrize("label", [1.0, "01", " 1", True])
    def test_labels_that_only_mean_the_same_are_unknown(self, label: Any) -> None:
        with pytest.raises(DataError, match="unknown label"):
            make(TASK).encode({"text": "the", "label": label}, "f:1")

    def test_booleans_are_written_as_json_does(self) -> None:
        spec = TASK | {"verbalisers": {"false": " terrible", "true": " great"}}
        assert make(spec).encode({"text": "the", "label": True}, "f:1").gold == 1

    def test_unknown_label_names_row_label_and_known_labels(self) -> None:
        with pytest.raises(DataError, match=r"^f:7: unknown label 'x'; known labels: 0, 1$"):
            make(TASK).encode({"text": "the", "label": "x"}, "f:7")

    def test_prediction_needs_no_label(self) -> None:
        assert make(TASK).encode({"text": "the"}, "f:1", labelled=False).gold == -1
        with pytest.raises(DataError, match="f:1: field 'label' is missing"):
            make(TASK).encode({"text": "the"}, "f:1")

    @pytest.mark.parametrize("value", [None, [1], {"a": 1}])
    def test_a_field_that_is_no_text_names_row_and_field(self, value: Any) -> None:
        with pytest.raises(DataError, match="f:3: field 'text'"):
            make(TASK).encode({"text": value, "label": "1"}, "f:3")

    def test_labels_with_the_same_first_token_are_refused(self) -> None:
        spec = TASK | {"verbalisers": {"0": " great", "1": " great film"}}
        with pytest.raises(DataError, match="two labels begin with the same token"):
            make(spec).encode({"text": "the", "label": "1"}, "f:1")

    def test_a_verbaliser_that_merges_into_the_prompt_is_refused(self) -> None:
        spec = TASK | {"template": "{text} It was grea", "verbalisers": {"0": "t", "1": " bad"}}
        assert ids("It was great")[-1] == ids(" great")[0]  # the trap is real
        with pytest.raises(DataError, match="verbaliser 't' merges"):
            make(spec).encode({"text": "the", "label": "1"}, "f:1")

    def test_leading_special_tokens_are_kept(self) -> None:
        with_bos = Tokenizer.from_str(TOKENIZER.to_str())
        with_bos.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
        example = make(TASK, tokenizer=with_bos).encode({"text": "the", "label": "1"}, "f:1")
        assert example.tokens.tolist() == [[1, *ids("the It was")]]
        assert example.candidates.tolist() == [[ids(" terrible")[0], ids(" great")[0]]]

    def test_braces_in_the_text_stay_text(self) -> None:
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

    def test_each_choice_is_a_row_scored_whole(self) -> None:
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

    def test_loss_metric_and_answer_use_the_mean_log_probability(self) -> None:
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

    def test_a_space_is_put_only_where_none_is(self) -> None:
        spaced = make(CHOICE | {"template": "{premise} so "}).encode(self.row | {"label": 0}, "f:1")
        end = spaced.positions[spaced.positions[:, 0] == 0][-1, 1] + 2
        assert TOKENIZER.decode(spaced.tokens[0, :end]) == "the film was bad so I left"

    @pytest.mark.parametrize("label", ["2", "-1", "", "one"])
    def test_unknown_choice(self, label: str) -> None:
        with pytest.raises(DataError, match=r"f:2: unknown label .*; known labels: 0, 1"):
            make(CHOICE).encode(self.row | {"label": label}, "f:2")

    def test_missing_choice(self) -> None:
        with pytest.raises(DataError, match="f:2: field 'choice2' is missing"):
            make(CHOICE).encode({"premise": "a", "choice1": "b", "label": 0}, "f:2")


class TestCompletion:
    def test_every_token_of_the_completion_is_scored(self) -> None:
        example = make(COMPLETION).encode({"prompt": "the film", "completion": " was bad"}, "f:1")
        assert example.tokens.tolist() == [ids("the film was bad")]
        start = len(ids("the film"))
        assert example.positions[:, 1].tolist() == list(range(start - 1, example.length - 1))
        assert example.candidates[:, 0].tolist() == ids("the film was bad")[start:]

    def test_after_an_empty_prompt_all_but_the_first_token_are_scored(self) -> None:
        task = make(COMPLETION | {"template": ""})
        example = task.encode({"completion": "the film was bad"}, "f:1")
        assert example.candidates[:, 0].tolist() == ids("the film was bad")[1:]

    def test_loss_is_the_mean_and_perplexity_weighs_tokens(self) -> None:
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
    def test_an_empty_completion_is_refused(self, text: str | None) -> None:
        with pytest.raises(DataError, match="f:9"):
            make(COMPLETION).encode({"prompt": "the", "completion": text}, "f:9")


class TestObserve:
    """Scores without a readout and the readout's part, as ``losses`` and ``predict`` see them."""

    three: ClassVar = TASK | {"verbalisers": {"0": " bad", "1": " good", "2": " so"}}
    choice: ClassVar = CHOICE | {"choice_fields": ["choice1", "choice2", "choice3"]}

    def examples(self, task: Task, seed: int, count: int) -> list[Encoded]:
        rng = np.random.default_rng(seed)
        words = ["the", "film", "was", "great", "and", "dull", "plot", "bad"]

        def text() -> str:
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
    def test_its_scores_are_those_that_losses_and_answers_follow(
        self, spec: dict[str, Any], seed: int, count: int
    ) -> None:
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
        whole = add_head(logp, inputs, weights.reshape(1, -1))
        losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(count), batch.gold]
        np.testing.assert_allclose(task.losses(whole, batch)[0], losses, atol=1e-4)
        shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])
        answers = [list(answer.scores.values()) for answer in task.predict(whole[0], batch)]
        np.testing.assert_allclose(answers, shares, atol=1e-4)

    def test_choices_of_different_lengths_weigh_alike(self) -> None:
        """A feature that is the same at every token of a choice is that number."""
        task = make(CHOICE)
        row = {"premise": "the", "choice1": "I", "choice2": "dull and the plot", "label": 1}
        batch = task.collate([task.encode(row, "f:1")])
        assert len(batch.positions) > 2
        inputs = np.ones((len(batch.positions), 2), np.float32)
        inputs[:, 0] = np.where(batch.row_of == 0, 5, 7)
        logp = np.zeros((len(batch.positions), 1), np.float32)
        assert task.observe(logp, inputs, batch).features[0, :, 0].tolist() == [5, 7]

    def test_tasks_without_a_choice_have_nothing_to_observe(self) -> None:
        for task in (make(COMPLETION), make(TASK, objective="vocabulary")):
            assert (task.answers, task.head_rows) == (0, 0)


class TestBounds:
    def test_too_long_names_row_tokens_bound_and_remedy(self) -> None:
        text = "the film was great and " * 10
        count = len(ids(text + " It was"))
        with pytest.raises(DataError, match=rf"f:4: {count} tokens exceed.*32.*on_long=.truncate"):
            make(TASK).encode({"text": text, "label": "1"}, "f:4")

    def test_truncation_keeps_the_template_and_the_start_of_the_text(self) -> None:
        text = "the film was great and " * 10
        example = make(TASK, on_long="truncate").encode({"text": text, "label": "1"}, "f:4")
        kept = TOKENIZER.decode(example.tokens[0])
        assert kept.endswith(" It was")
        assert text.startswith(kept.removesuffix(" It was"))
        assert BOUNDS.length - 3 <= example.length <= BOUNDS.length

    def test_the_longest_field_gives_way(self) -> None:
        spec = TASK | {"template": "{text} because {why} It was"}
        row = {"text": "the plot", "why": "the film was great and " * 10, "label": "1"}
        example = make(spec, on_long="truncate").encode(row, "f:4")
        assert TOKENIZER.decode(example.tokens[0]).startswith("the plot because the film")

    def test_choices_are_never_cut(self) -> None:
        row = {"premise": "the film was great and " * 10, "choice1": "I left", "choice2": "bad"}
        example = make(CHOICE, on_long="truncate").encode(row | {"label": 0}, "f:4")
        assert example.length <= BOUNDS.length
        assert TOKENIZER.decode(example.tokens[0]).endswith(" so I left")

    def test_a_long_completion_gives_way_before_the_prompt(self) -> None:
        row = {"prompt": "the film", "completion": " was great and dull" * 20}
        example = make(COMPLETION, on_long="truncate").encode(row, "f:4")
        assert example.length <= BOUNDS.length
        assert TOKENIZER.decode(example.tokens[0]).startswith("the film was great")

    def test_a_template_that_is_too_long_by_itself(self) -> None:
        spec = TASK | {"template": "{text}" + " the film was great" * 20}
        with pytest.raises(DataError, match="f:4: the template and the answer alone have"):
            make(spec, on_long="truncate").encode({"text": "x" * 50, "label": "1"}, "f:4")

    def test_what_one_example_may_need(self) -> None:
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


class TestCollate:
    def test_positions_point_at_the_same_tokens_after_padding(self) -> None:
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

    def test_at_least_two_tokens_long(self) -> None:
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
            ({"kind": "regression"}, "kind 'regression' is unknown"),
            ({"extra": 1}, "field 'extra' .* is unknown"),
            ({"template": 3}, "'template' must be a str"),
            ({"template": "{text"}, "template '{text'"),
            ({"template": "{text!r}"}, "not a plain field name"),
            ({"template": "{text.__class__}"}, "not a plain field name"),
            ({"template": "{}"}, "not a plain field name"),
            ({"verbalisers": {"0": " a"}}, "at least two labels"),
            ({"verbalisers": {"0": " a", "1": 2}}, "must hold text only"),
        ],
    )
    def test_a_wrong_field_is_named(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            make(TASK | change)

    def test_a_missing_field_is_named(self) -> None:
        with pytest.raises(DataError, match="field 'template' of a classification task is missing"):
            make({name: value for name, value in TASK.items() if name != "template"})

    @pytest.mark.parametrize("options", [{"objective": "loss"}, {"on_long": "cut"}])
    def test_unknown_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(DataError, match="is unknown; use"):
            make(TASK, **options)

"""Evaluation equals scoring every example alone, within the program's bounds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from seedtune.runtime.engines import Engine, Scores
from seedtune.runtime.errors import DataError, EngineError
from seedtune.runtime.scoring.answer_head import AnswerHead
from seedtune.runtime.scoring.batch_loss import split_batch
from seedtune.runtime.scoring.evaluation import evaluate, predict
from seedtune.runtime.scoring.known_forwards import KnownForwards
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import encode_rows, task_from_spec
from tiny_bundle import BOUNDS, TASK, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WORDS = ["the", "film", "was", "great", "and", "dull", "plot", "bad"]
SPECS: dict[str, dict[str, Any]] = {
    "classification": TASK,
    "multiple_choice": {
        "kind": "multiple_choice",
        "template": "{text} so",
        "choice_fields": ["a", "b"],
        "label_field": "label",
    },
    "completion": {"kind": "completion", "template": "{text}", "completion_field": "a"},
}


class HashEngine(Engine):
    """A causal toy program: the log-probability depends on the row up to the position, the
    candidate and the values; it refuses whatever exceeds the bounds."""

    entries, hidden_width = 3, 2

    def __init__(self):
        self.calls = 0

    def score(self, batch, values, **nothing):
        self.calls += 1
        rows, length = batch.tokens.shape
        assert rows * length <= BOUNDS.tokens and 2 <= length <= BOUNDS.length
        assert len(batch.positions) <= BOUNDS.positions
        assert values.dtype == np.float32 and values.shape == (1, 3)
        places = [divmod(int(flat), length) for flat in batch.positions]
        seen = [self._history(batch.tokens[row, : column + 1]) for row, column in places]
        history = np.array(seen)[:, None]
        logp = -np.abs(np.sin(batch.candidates * history + values.sum())) - 0.1
        hidden = np.concatenate([np.cos(history), np.sin(history)], axis=1)
        return Scores(logp[None].astype(np.float32), hidden[None].astype(np.float32))

    def _history(self, tokens):
        return float(np.cos(tokens * np.arange(1, len(tokens) + 1)).sum())


def rows(count):
    rng = np.random.default_rng(3)

    def text():
        return " ".join(rng.choice(WORDS, size=rng.integers(1, 9)))

    return [
        {"text": text(), "a": " " + text(), "b": text(), "label": int(rng.integers(2))}
        for _ in range(count)
    ]


def task_of(kind):
    return task_from_spec(SPECS[kind], TOKENIZER, BOUNDS, 0)


@pytest.mark.parametrize(
    ("kind", "readout"),
    [*((kind, False) for kind in SPECS), ("classification", True), ("multiple_choice", True)],
)
def test_equals_one_example_at_a_time(kind, readout):
    task = task_of(kind)
    encoded = encode_rows(task, rows(45))
    weights = np.random.default_rng(0).standard_normal((task.head_rows, 3)).astype(np.float32)
    own = np.append(weights, np.float32(0))
    part = AnswerHead(task.head_labels, 2, own) if readout else None
    values = Values(np.array([0.5, -1.0, 2.0], np.float32), part)
    steps: list[tuple[int, int]] = []
    engine = HashEngine()
    result = evaluate(
        engine,
        task,
        encoded,
        values,
        BOUNDS,
        progress=lambda done, total: steps.append((done, total)),
    )
    losses, totals, answers = [], np.zeros(2), []
    for example in encoded:
        batch = task.collate([example])
        scores = HashEngine().score(batch, values.sensitive[None])
        logp = scores.logp
        for row, each in enumerate(weights if readout else ()):
            logp[0, :, row] += scores.hidden[0] @ each[:2] + each[2]
        losses.append(task.losses(logp, batch)[0, 0])
        totals += task.metric(logp[0], batch)[0]
        answers += task.predict(logp[0], batch)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert result.metric == pytest.approx(task.aggregate(totals), rel=1e-6)
    assert result.metric > 0 and result.examples == 45
    assert result.forwards == engine.calls == len(steps)
    assert result.forwards < 45
    assert steps[-1] == (45, 45)
    predicted = predict(HashEngine(), task, encoded, values, BOUNDS)
    assert [p.answer for p in predicted] == [a.answer for a in answers]
    for left, right in zip(predicted, answers, strict=True):
        assert left.scores == pytest.approx(right.scores, rel=1e-5)


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_forwards_are_known_while_the_sensitive_values_stand_still(kind):
    """Other weights of an answer head give the same bits as with forwards of their own."""
    task, rng = task_of(kind), np.random.default_rng(1)
    encoded = encode_rows(task, rows(45))
    engine = HashEngine()
    known = KnownForwards(engine)
    sensitive = rng.standard_normal(3).astype(np.float32)
    own = rng.standard_normal((2, 3 * task.head_rows + 1)).astype(np.float32)
    heads = [AnswerHead(task.head_labels, 2, each) for each in own]
    start = Values(sensitive)
    each = [start, *(Values(sensitive, head) for head in heads)]
    moved = Values(sensitive + np.float32(0.5), heads[0])
    calls = []
    for values in (*each, moved, start):
        found = evaluate(engine, task, encoded, values, BOUNDS, known=known)
        fresh = evaluate(HashEngine(), task, encoded, values, BOUNDS)
        assert (found.loss, found.metric) == (fresh.loss, fresh.metric)
        calls.append(found.forwards)
        answers = predict(engine, task, encoded, values, BOUNDS, known=known)
        assert answers == predict(HashEngine(), task, encoded, values, BOUNDS)
    assert calls == [fresh.forwards, 0, 0, fresh.forwards, fresh.forwards]
    assert engine.calls == known.calls == sum(calls) and known.complete
    batch = task.collate(encoded[:2])
    for shift in range(2):  # what is asked of the same rows may differ
        other = replace(batch, candidates=batch.candidates + shift)
        np.testing.assert_array_equal(known.score(other, start), start.score(HashEngine(), other))


def test_no_more_forwards_are_kept_than_there_is_room_for():
    task = task_of("classification")
    encoded = encode_rows(task, rows(45))
    engine = HashEngine()
    known = KnownForwards(engine, most_bytes=2500)
    for number in range(2):  # other values have the room of those before them
        given = engine, task, encoded, Values(np.full(3, number, np.float32)), BOUNDS
        first, again = (evaluate(*given, known=known) for _ in range(2))
        assert again.loss == first.loss
        assert 0 < again.forwards < first.forwards and not known.complete


def test_examples_of_like_length_run_together():
    """Sorting by length saves padding: fewer token places than in the given order."""
    task = task_of("classification")
    encoded = encode_rows(task, rows(64))
    places = 0

    class Counting(HashEngine):
        def score(self, batch, values, **nothing):
            nonlocal places
            places += batch.tokens.size
            return super().score(batch, values)

    evaluate(Counting(), task, encoded, Values(np.zeros(3, np.float32)), BOUNDS)
    unsorted = sum(task.collate(part).tokens.size for part in split_batch(encoded, BOUNDS))
    assert places < 0.9 * unsorted


def test_nothing_to_evaluate():
    with pytest.raises(DataError, match="no examples"):
        evaluate(HashEngine(), task_of("completion"), [], Values(np.zeros(3, np.float32)), BOUNDS)


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("odd", [np.nan, -np.inf])
def test_no_answer_from_scores_that_are_not_finite(kind, odd):
    """An argmax over NaN would be the first label, with confidence."""
    task = task_of(kind)
    encoded = encode_rows(task, rows(9))
    own = encoded[5].tokens[-1]

    class Odd(HashEngine):
        def score(self, batch, values, **nothing):
            scores = super().score(batch, values)
            for place, row in enumerate(batch.row_of):
                if np.array_equal(batch.tokens[row][: len(own)], own):
                    scores.logp[0, place, -1] = odd
            return scores

    assert len(predict(HashEngine(), task, encoded, Values(np.zeros(3, np.float32)), BOUNDS)) == 9
    with pytest.raises(EngineError, match=r"^row 6: its scores are NaN or infinite, so there is"):
        predict(Odd(), task, encoded, Values(np.zeros(3, np.float32)), BOUNDS)

"""The order in which a task lists its answers says nothing: any order, the same answers.

A run's task goes through JSON on its way: the journal's header, the bundle's manifest, the app's
files. Labels are in odd orders here, and some readers keep none.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import bad, good
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from seedtune.runtime import engines, open_model
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines import Scores
from seedtune.runtime.journal import format as journal_format
from seedtune.runtime.journal.operations import branch, receive, share
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay
from seedtune.runtime.scoring.answer_head import AnswerHead
from seedtune.runtime.tasks import classification
from tiny_bundle import tiny_tokenizer, write_tiny_bundle
from value_engine import HiddenEngine

WORDS = {
    "Zeta": " great",
    "10": " bad",
    "9": " terrible",
    "é": " plot",
    " a": " film",
    "ham, spam": " so",
}
LABELS = tuple(WORDS)
ORDERS = st.integers(2, 6).flatmap(lambda count: st.permutations(LABELS[:count]))
CUES = ["the film", "great plot", "dull", "bad", "good", "I left"]
MANY = Bounds(probes=2, rows=8, length=32, positions=48, candidates=6)


class WordEngine(HiddenEngine):
    """Scores follow from the row, the values and the candidates' own tokens, not their order."""

    def score(self, batch, values, **nothing):
        rows = batch.tokens.sum(axis=1)[batch.row_of].astype(np.float64)
        hints = np.cos(batch.candidates[None] + rows[None, :, None] + values[:, :1, None])
        logp = (hints + values[:, 1:2, None] * np.sin(batch.candidates)[None] - 4).astype(
            np.float32
        )
        hidden = np.cos(rows[:, None] * np.arange(1, 9)).astype(np.float32)
        return Scores(logp, np.stack([hidden] * len(values)))


def spec_of(order):
    """A task that lists its labels in that order."""
    words = {label: WORDS[label] for label in order}
    template = "{text} It was"
    return {"kind": "classification", "template": template, "label_field": "kind",
            "verbalisers": words}  # fmt: skip


def rows_of(order, count):
    """Rows whose label follows from their text; the same for any order."""
    labels = [label for label in LABELS if label in order]
    return [{"text": f"{CUES[n % 6]} {CUES[n % 5]}", "kind": labels[(n % 6 + n % 5) % len(labels)]}
            for n in range(count)]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle without a task."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle", bounds=MANY, task=None)


@pytest.fixture
def tiny(written, monkeypatch):
    """The bundle, with an engine for it."""
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: WordEngine(), raising=False)
    return written


def tune(bundle, folder, order, *more):
    """``seedtune tune`` with files as a person has them."""
    rows = folder / "rows.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(order, 48))
    rows.write_text(text, encoding="utf-8")
    task = folder / "task.json"
    task.write_text(json.dumps(spec_of(order), ensure_ascii=False), encoding="utf-8")
    return good("tune", bundle, folder / "run", "--task", task, "--train", rows, "--data", rows,
                "--batch-size", 6, *more)  # fmt: skip


def said(bundle, folder, *how):
    """The answers of ``seedtune predict``."""
    found: list[dict[str, Any]] = good("predict", bundle, "--data", folder / "rows.jsonl", *how)[
        "predictions"
    ]
    return found


def slowly(test):
    """Few examples without a deadline: each is a run or several."""
    checks = [HealthCheck.function_scoped_fixture]
    return hypothesis_settings(deadline=None, max_examples=5, suppress_health_check=checks)(test)


class TestAnyOrder:
    @given(order=ORDERS, later=st.randoms(use_true_random=False))
    @slowly
    def test_a_readout_answers_alike_by_every_way(self, tiny, order, later):
        """Told, saved, replayed, resumed, branched."""
        other = later.sample(order, len(order))
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            one, two = Path(first), Path(second)
            wanted = tune(tiny.path, one, sorted(order), "--steps", 4)
            found = tune(tiny.path, two, order, "--steps", 2)
            found = tune(tiny.path, two, other, "--steps", 4)  # resumes
            for name in ("values_sha256", "before", "after"):
                assert found[name] == wanted[name]
            answers = said(tiny.path, one, "--run", one / "run")
            branch(two / "run", two / "branch")
            for how in (
                ["--run", two / "run"],
                ["--run", two / "branch"],
                ["--run", two / "run", "--task", one / "task.json"],
                ["--values", two / "run" / "values.safetensors", "--task", two / "task.json"],
            ):
                assert said(tiny.path, two, *how) == answers
            judged = good("evaluate", tiny.path, "--run", two / "run",
                          "--data", two / "rows.jsonl")  # fmt: skip
            right = sum(a["answer"] == r["kind"] for a, r in zip(answers, rows_of(order, 48),
                                                                 strict=True))  # fmt: skip
            assert judged["accuracy"] == pytest.approx(right / 48)

    @given(order=ORDERS)
    @slowly
    def test_a_run_of_seeds_ends_on_the_same_values_and_is_received(self, tiny, order):
        """So a merge of either writes the same bytes."""
        options = ["--estimator", "two-point", "--lr", 0.01, "--eps", 0.01, "--steps", 3]
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            one, two = Path(first), Path(second)
            wanted = tune(tiny.path, one, sorted(order), *options)
            assert tune(tiny.path, two, order, *options)["values_sha256"] == wanted["values_sha256"]
            share(two / "run", two / "run.journal", Start.of(tiny))
            receive(two / "run.journal", two / "got", Start.of(tiny))
            assert said(tiny.path, two, "--run", two / "got") == said(
                tiny.path, one, "--run", one / "run"
            )

    @given(order=ORDERS)
    @slowly
    def test_a_bundle_with_the_task_answers_alike(self, tiny, order):
        """Whose manifest lists it in another order."""
        with tempfile.TemporaryDirectory() as name:
            folder, ends = Path(name), []
            for place, each in enumerate((sorted(order), order)):
                bundle = write_tiny_bundle(
                    folder / f"bundle{place}", bounds=MANY, task=spec_of(each)
                )
                rows = rows_of(order, 24)
                with open_model(bundle) as model, model.tuner(
                    folder / f"run{place}", rows, rows, steps=3, batch_size=6
                ) as tuner:  # fmt: skip
                    list(tuner)
                    model.load(tuner.tuned())
                    ends.append((model.values.sha256, model.predict(rows)))
            assert ends[0] == ends[1]


@pytest.mark.parametrize("order", [("Zeta", "9", " a", "10"), ("ham, spam", "é", "10")])
def test_programs_of_other_engines_answer_alike(reach, tmp_path, order):
    """A run tuned by one engine, used by every other one, whatever the order."""
    rows = rows_of(order, 12)
    ends = []
    for place, each in enumerate((sorted(order), order)):
        words = {label: WORDS[label].strip() for label in each}  # its tokens are mostly letters
        spec = {**spec_of(each), "template": "{text}\n", "verbalisers": words}
        run = tmp_path / f"run{place}"
        with open_model(reach, task=spec, threads=1) as model, model.tuner(
            run, rows, rows, steps=2, batch_size=6
        ) as tuner:  # fmt: skip
            list(tuner)
        answers = []
        for name in ("executorch-native", "onnxruntime", "torch-int4"):
            with open_model(reach, engine=name, threads=1) as model:
                model.load(run)
                answers.append([found.answer for found in model.predict(rows)])
        ends.append((replay(run, Start.of(reach)).sha256, answers))
    assert ends[0] == ends[1]
    assert ends[0][1][0] == ends[0][1][1] == ends[0][1][2]


def sorted_header(header):
    """A header as a writer leaves it that sorts the keys of JSON."""
    task = json.loads(json.dumps(header.task, sort_keys=True))
    return journal_format.Header(**{**header.__dict__, "task": task})


def test_tune_notices_that_what_it_wrote_answers_otherwise(tiny, tmp_path, monkeypatch):
    """Answers in the order of the specification, a header with sorted keys, and rows that are not
    found by name: the defect that there once was."""
    order = ["Zeta", "9", "10"]
    (tmp_path / "good").mkdir()
    tune(tiny.path, tmp_path / "good", order, "--steps", 4)
    monkeypatch.setattr(classification, "sorted", list, raising=False)
    monkeypatch.setattr(AnswerHead, "for_task", lambda head, task, engine: head)
    plain = journal_format.Header.encode
    monkeypatch.setattr(
        journal_format.Header, "encode", lambda header: plain(sorted_header(header))
    )
    (tmp_path / "bad").mkdir()
    for name in ("rows.jsonl", "task.json"):
        (tmp_path / "bad" / name).write_bytes((tmp_path / "good" / name).read_bytes())
    rows = tmp_path / "bad" / "rows.jsonl"
    error = bad(7, "tune", tiny.path, tmp_path / "bad" / "run", "--task",
                tmp_path / "bad" / "task.json", "--train", rows, "--data", rows,
                "--batch-size", 6, "--steps", 4)  # fmt: skip
    assert "loaded again, the run has loss " in error and "but was judged to have loss" in error


def test_the_toy_tokenizer_tells_the_words_apart():
    firsts = {tiny_tokenizer().encode(word).ids[0] for word in WORDS.values()}
    assert len(firsts) == len(WORDS)

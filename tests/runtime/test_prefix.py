"""A prefix: what every row has in front is read once, and changes nothing of what rows say."""

import json
import operator
from dataclasses import replace

import numpy as np
import pytest
from command_line import bad, good
from exported_bundle import VOCABULARY, moved, request
from hypothesis import given, settings
from hypothesis import strategies as st
from seedtune.runtime import open_model
from seedtune.runtime.bundle import Bounds, open_bundle
from seedtune.runtime.engines import open_engine, read_prefix
from seedtune.runtime.engines.memory import PassMemory, fit_passes
from seedtune.runtime.engines.read_prefix import ReadPrefix
from seedtune.runtime.errors import BundleError, DataError, EngineError, TuningError
from seedtune.runtime.tasks import (
    Encoded,
    demonstrations,
    read_rows,
    task_for,
    task_from_spec,
)
from seedtune.runtime.tasks.tokenising import LEAST, Front
from tiny_bundle import TASK, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

EXECUTORCH = ("executorch-native", "executorch-binding")
OTHERS = ("onnxruntime", "torch-int4:cpu")
SHOWN = [
    {"text": "a joy, and the plot was good", "label": "pos"},
    {"text": "terrible: the actors were bad", "label": "neg"},
]
SPEC = {
    "kind": "classification",
    "template": "{text} It was",
    "label_field": "label",
    "verbalisers": {"pos": " great", "neg": " terrible"},
    "demonstrations": SHOWN,
}
ROWS = [
    {"text": text, "label": label}
    for text, label in [
        ("the film was great", "pos"), ("dull", "neg"), ("\na line's end in front", "pos"),
        ("so I left", "neg"), (" ", "neg"),
        ("ümläut 字 ☃", "pos"), ("'s", "neg"), ("the plot", "pos"),
    ]
]  # fmt: skip
WIDE = Bounds(probes=2, rows=8, length=200, positions=48, candidates=4)


def with_prefix(batch, tokens):
    drawn = np.random.default_rng(tokens).integers(0, VOCABULARY, tokens)
    return replace(batch, prefix=drawn)


def asked(bundle, tokens, probes=2):
    batch, values = request(bundle, rows=3, length=9, scored=5, choices=3, probes=probes)
    return with_prefix(batch, tokens), values


@pytest.mark.parametrize("name", [*EXECUTORCH, *OTHERS])
@pytest.mark.parametrize("tokens", [1, 20])
def test_rows_behind_a_prefix_say_what_rows_that_hold_it_say(reach, name, tokens):
    batch, values = asked(reach, tokens)
    with open_engine(reach, name=name) as engine:
        found, whole = engine.score(batch, values), engine.score(batch.whole, values)
        alone = engine.score(replace(batch, prefix=batch.prefix[:0]), values)
    assert found.hidden is not None and whole.hidden is not None and alone.hidden is not None
    # Products of int8 activations are the same; attention adds up in another order.
    exact = name in OTHERS
    assert np.abs(found.logp - whole.logp).max() < (1e-4 if exact else 0.05)
    assert np.abs(alone.logp - whole.logp).max() > 0.1, "the prefix must matter"
    assert reach.adapter_shape is not None
    of_token = reach.adapter_shape[1]
    apart = np.abs((found.hidden - whole.hidden)[:, :, :of_token]).max()
    assert apart < (1e-4 if exact else 0.1)


@pytest.mark.parametrize("name", ["executorch-native", *OTHERS])
def test_a_long_prefix_is_read_in_pieces(reach, name):
    """Of the program's bound: more than a row holds."""
    batch, values = asked(reach, reach.bounds.prefix)
    with open_engine(reach, name=name) as engine:
        first = engine.score(batch, values).logp
        other = replace(batch, prefix=batch.prefix[::-1].copy())
        assert np.abs(engine.score(other, values).logp - first).max() > 0.1
        np.testing.assert_array_equal(engine.score(batch, values).logp, first)
        longer = with_prefix(batch, reach.bounds.prefix + 1)
        with pytest.raises(EngineError, match=r"a prefix of 65 tokens.*bounds\.prefix"):
            engine.score(longer, values)
        for odd, told in ((-1, "must not be negative"), (100_000, "vocabulary|failed|must lie in")):
            wrong = replace(batch, prefix=np.full_like(batch.prefix, odd))
            with pytest.raises(EngineError, match=told):
                engine.score(wrong, values)
        np.testing.assert_array_equal(engine.score(batch, values).logp, first)


@pytest.mark.parametrize("name", OTHERS)
def test_the_length_of_the_pieces_changes_nothing(reach, name, monkeypatch):
    """30 tokens in one piece, and in pieces of 7, of which the last has two, of 29 and of one."""
    batch, values = asked(reach, 30)
    found = []
    for piece in (64, 7, 29, 1):
        monkeypatch.setattr(read_prefix, "PIECE", piece)
        with open_engine(reach, 1, name=name) as engine:
            found.append(engine.score(batch, values).logp)
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-4)


def readings(monkeypatch):
    """Tokens of the prefixes that are read from now on, once for each row of values."""
    read: list[int] = []
    real = ReadPrefix.blocks

    def noted(self, tokens, under, make):
        def counted():
            read.extend([len(tokens)] * len(under[0]))
            return make()

        return real(self, tokens, under, counted)

    monkeypatch.setattr(ReadPrefix, "blocks", noted)
    return read


@pytest.mark.parametrize("name", ["executorch-native", *OTHERS])
def test_it_is_read_once_for_a_row_of_values(reach, name, monkeypatch):
    read = readings(monkeypatch)
    batch, values = asked(reach, 20)
    other, _ = request(reach, rows=2, length=5, scored=2, choices=1, probes=2)
    with open_engine(reach, name=name) as engine:
        first = engine.score(batch, values).logp
        assert read == [20, 20]
        engine.score(replace(other, prefix=batch.prefix), values)
        engine.score(other, values)  # without one
        np.testing.assert_array_equal(engine.score(batch, values).logp, first)
        assert read == [20, 20], "other rows read it again"
        moved = values + np.float32(0.1)
        again = engine.score(batch, moved).logp
        assert read == [20] * 4, "other values must read it anew"
        wanted = engine.score(batch.whole, moved).logp
        assert np.abs(again - wanted).max() < 0.05 < np.abs(again - first).max()
        engine.score(replace(batch, prefix=batch.prefix[1:]), values)
        assert read[4:] == [19, 19], "another prefix must be read"


@pytest.mark.parametrize("name", ["executorch-native", *OTHERS])
def test_terms_move_it_and_an_adapter_does_not(reach, name, monkeypatch):
    read = readings(monkeypatch)
    batch, values = asked(reach, 20)
    adapter, terms = moved(batch, values)
    other = [each[::-1].copy() for each in terms]
    with open_engine(reach, name=name) as engine:
        plain = engine.score(batch, values).logp
        assert read == [20] * 2
        for given in (terms, other, terms):
            before = len(read)
            found = engine.score(batch, values, adapter, given, inside=True)
            assert read[before:] == [20, 20], "other terms must read it anew"
            engine.score(batch, values, 2 * adapter, [each.copy() for each in given])
            assert len(read) == before + 2, "another adapter read it again"
            whole = engine.score(batch.whole, values, adapter, given, inside=True)
            exact = name in OTHERS
            assert np.abs(found.logp - whole.logp).max() < (1e-3 if exact else 0.1)
            for each, wanted in zip(found.inside, whole.inside, strict=True):
                apart = np.abs(each - wanted).max() / np.abs(wanted).max()
                assert apart < (1e-4 if exact else 0.05)
            assert np.abs(found.logp - plain).mean() > 0.1
        np.testing.assert_array_equal(engine.score(batch, values).logp, plain)


@pytest.mark.parametrize("name", ["executorch-native", *OTHERS])
@pytest.mark.parametrize("estimator", ["readout", "per-example"])
def test_a_run_reads_it_once_a_state_of_the_values(reach, tmp_path, monkeypatch, estimator, name):
    read = readings(monkeypatch)
    with open_model(reach, task=SPEC, engine=name) as model:
        assert len(model.task.prefix) >= LEAST
        options = {"estimator": estimator, "steps": 2, "batch_size": 4}
        with model.tuner(tmp_path / "run", ROWS, ROWS, **options) as tuner:
            for _ in tuner:
                pass
            tuned = tuner.tuned()
        model.load(tuned)
        again = model.evaluate(ROWS)
        assert tuned.loss == pytest.approx(again.loss, abs=1e-5)
    if estimator == "readout":
        assert len(read) == 1, "the values stood still"
    else:
        assert len(read) > 4


def test_a_task_says_the_same_with_its_start_in_the_rows(bundle):
    with open_model(bundle, task=SPEC) as model:
        apart, together = model.task, task_for(bundle, SPEC, bounds=WIDE)
        assert len(apart.prefix) >= LEAST and not len(together.prefix)
        for row in ROWS:
            one, other = (task.encode(row, "f:1") for task in (apart, together))
            whole = apart.collate([one]).whole
            # A line's end in front merges with the one before it: the tokens differ, the text not.
            if not row["text"].startswith("\n"):
                assert whole.tokens.tolist() == other.tokens.tolist(), row
            assert whole.candidates.tolist() == other.candidates.tolist()


texts = st.text(st.sampled_from(" abcthefilm\n.'1éA字"), max_size=12)


def sentencepiece():
    """As Llama 2 has it: a mark in front of every text, so that a rest is never cut alone."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>"], show_progress=False,
        initial_alphabet=list(" abcdefghijklmnopqrstuvwxyz\n.'{1éA字"),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the film was great and the plot was good"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), sentencepiece()], ids=["bytes", "pieces"])
@settings(max_examples=300, deadline=None)
@given(start=st.text(st.sampled_from("the film was great\n.{1é"), max_size=90), rest=texts)
def test_a_front_and_what_stands_behind_it_are_the_whole_text(tokenizer, start, rest):
    front = Front(start, tokenizer, 40)
    assert len(front.tokens) == 0 or LEAST <= len(front.tokens) <= 40
    ids = tokenizer.encode(start + rest).ids
    behind, ends = front.behind(start + rest)
    assert tokenizer.decode([*front.tokens.tolist(), *behind]) == tokenizer.decode(ids)
    assert len(ends) == len(behind) and ends == sorted(ends)
    if behind:
        assert ends[-1] == len(start + rest)
    if len(front.tokens):
        assert len(tokenizer.encode(start).ids) - len(front.tokens) >= 2


def test_a_front_ends_before_all_that_what_follows_may_change():
    letters = [(each, -1.0) for each in "abcdefghijklmnopqrstwxyz1"]
    tokenizer = Tokenizer(models.Unigram([("?", -9.0), *letters, ("wxyz1", -0.5)], unk_id=0))
    front = Front("abcdefghijklmnopqrstwxyz", tokenizer, 100)
    assert tokenizer.decode(front.tokens.tolist()).replace(" ", "") == "abcdefghijklmnopqrst"


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        (
            {"kind": "multiple_choice", "choice_fields": ["b", "a"], "label_field": "label"},
            {"text": "the plot", "b": "was good", "a": " was bad", "label": "1"},
        ),
        ({"kind": "completion", "completion_field": "c"}, {"text": "the plot", "c": " was good"}),
        ({"kind": "completion", "completion_field": "c"}, {"text": "", "c": "bad"}),
    ],
)
def test_an_instruction_in_front_of_other_kinds(spec, row):
    spec = {**spec, "template": "Answer in a word, 1 2 3 4 5 6 7 8 9.\n{text}"}
    wide = replace(WIDE, prefix=100)
    apart, together = (task_from_spec(spec, tiny_tokenizer(), bounds, 0) for bounds in (wide, WIDE))
    assert len(apart.prefix) >= LEAST
    one, other = (task.encode(row, "f:1") for task in (apart, together))
    whole, wanted = apart.collate([one]).whole, together.collate([other])
    for name in ("tokens", "positions", "candidates"):
        assert getattr(whole, name).tolist() == getattr(wanted, name).tolist()


def test_demonstrations_beyond_both_bounds_are_refused():
    bounds = replace(WIDE, length=32, prefix=30)
    with pytest.raises(DataError, match=r"the demonstrations alone have .* a row has 62 at most"):
        task_from_spec({**TASK, "demonstrations": [{"text": "a" * 90, "label": 1}]},
                       tiny_tokenizer(), bounds, 0)  # fmt: skip


def test_passes_leave_memory_for_it():
    memory = PassMemory(token=1000, position=0, tables=0, prefix_token=50_000, prefix_pair=10)
    one = Encoded(np.zeros((1, 32), np.int64), np.zeros((1, 2), np.int64),
                  np.zeros((1, 1), np.int64), 0)  # fmt: skip
    bounds = Bounds(probes=2, rows=4, length=32, positions=64, candidates=2, prefix=1000)
    room = memory.bytes(bounds, 100)
    assert room - memory.bytes(bounds) == 2 * (100 * 50_000 + 128 * 100 * 10)
    one_row = replace(bounds, rows=2, length=2)
    assert memory.bytes(one_row, 100) == room, "the prefix itself is read in passes as large"
    now = (10**6, room)
    assert fit_passes(bounds, memory, [one], prefix=100, now=now).probes == 2
    assert fit_passes(bounds, memory, [one], prefix=150, now=now).probes == 1
    with pytest.raises(TuningError, match="put less than 1000 tokens in front of every row"):
        fit_passes(bounds, memory, [one], prefix=1000, now=now)


def test_every_program_counts_its_memory(reach):
    for program in reach.programs:
        memory = PassMemory.of_bundle(replace(reach, programs=(program,)))
        assert memory.prefix_token == 2 * 2 * 4 * 2 * 8, "two blocks, two heads of 8"
        assert memory.prefix_pair == 2 * 4 * 4


def test_a_prefix_counts_in_pieces_as_large_as_its_program_reads(tmp_path):
    from tiny_bundle import write_tiny_bundle

    bundle = write_tiny_bundle(tmp_path / "b")
    assert PassMemory.of_bundle(bundle).prefix_piece == read_prefix.PIECE
    generate = {"chunk": 48, "context": 96, "columns": 1, "cache": [[2, 8]]}
    program = bundle.programs[0]
    writes = replace(program, methods={**program.methods, "generate": generate})
    memory = PassMemory.of_bundle(replace(bundle, programs=(writes,)))
    row = replace(bundle.bounds, rows=2, length=2, probes=1)
    more = memory.bytes(row, 100) - memory.bytes(row)
    assert more == 100 * memory.prefix_token + 48 * (memory.token + 100 * memory.prefix_pair) - (
        row.tokens * memory.token
    )


def test_a_bundle_does_not_say_more_than_its_programs_read(tmp_path):
    from tiny_bundle import BOUNDS, write_tiny_bundle

    with pytest.raises(BundleError, match="executorch program reads no prefix"):
        open_bundle(write_tiny_bundle(tmp_path / "b", bounds=replace(BOUNDS, prefix=9)).path)


MANY = [
    {"text": f"{word} {number}", "label": label}
    for number in range(20)
    for word, label in (("great", "pos"), ("bad", "neg"), ("\u2603", "neg"))
]


def test_demonstrations_are_drawn_and_kept_apart(bundle, tmp_path):
    plain = {name: value for name, value in SPEC.items() if name != "demonstrations"}
    options = {"estimator": "readout", "steps": 2, "batch_size": 4}
    with open_model(bundle, task=plain) as model:
        left = model.show(MANY, 4)
        assert model.task_spec is not None
        shown = model.task_spec["demonstrations"]
        assert [row["label"] for row in sorted(shown, key=str)].count("pos") == 2
        assert len(left) == len(MANY) - len(MANY) // 8 - 4
        assert not [row for row in left if row in shown]
        with model.tuner(tmp_path / "run", left, ROWS, **options) as tuner:
            tuner.step()
    # The same rows and fields, in another order: whoever goes on finds the same ones left.
    by_text = operator.itemgetter("text")
    with open_model(bundle, task=model.task_spec) as again:
        same = again.show([dict(reversed(row.items())) for row in MANY[::-1]], 4)
        assert again.task_spec == model.task_spec
        assert sorted(same, key=by_text) == sorted(left, key=by_text)
        with again.tuner(tmp_path / "run", left, ROWS) as tuner:
            tuner.step()
            assert tuner.history.steps == 2
    with open_model(bundle) as user:
        user.load(tmp_path / "run")
        assert len(user.task.prefix) > 0, "the run's task has them"


def test_fewer_are_drawn_where_rows_are_long(bundle):
    plain = {name: value for name, value in SPEC.items() if name != "demonstrations"}
    rows = [{**row, "text": row["text"] + " 12345 x"} for row in MANY]
    with open_model(bundle, task=plain) as model:
        left = model.show(rows, "auto")
        assert model.task_spec is not None
        shown = model.task_spec["demonstrations"]
        assert len(shown) in (1, 2, 3) and len(left) == 53 - len(shown)
        assert len(model.task.prefix) <= bundle.bounds.prefix
        with pytest.raises(DataError, match="none of the 60 rows is short enough"):
            next(demonstrations.draws(task_for(bundle, plain), read_rows(rows), 2, room=9))
    other = {"kind": "completion", "template": "{text}", "completion_field": "label"}
    with open_model(bundle, task=other) as model, pytest.raises(DataError, match="completion task"):
        model.show(MANY, 2)


def test_few_rows_are_all_to_learn_from(bundle):
    plain = {name: value for name, value in SPEC.items() if name != "demonstrations"}
    few = MANY[:9]
    with open_model(bundle, task=plain) as model:
        assert [dict(row) for row in model.show(few, "auto")] == few
        assert not len(model.task.prefix)
        assert len(model.show(few, 1)) == 7, "asked for, one is shown, and one compares"


def test_a_run_by_the_command_line_answers_as_it_was_judged(bundle, tmp_path):
    plain = {name: value for name, value in SPEC.items() if name != "demonstrations"}
    files = {"task.json": json.dumps(plain)}
    for name, rows in (("train.jsonl", MANY), ("held.jsonl", ROWS)):
        files[name] = "\n".join(map(json.dumps, rows))
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    run, held = tmp_path / "run", tmp_path / "held.jsonl"
    asked = [
        *("tune", bundle.path, run, "--task", tmp_path / "task.json"),
        *("--train", tmp_path / "train.jsonl", "--test", held, "--data", held),
        *("--demonstrations", 3, "--batch-size", 4),
    ]
    first = good(*asked, "--steps", 3)
    again = good(*asked, "--steps", 6)
    assert (first["steps"], again["steps"]) == (3, 6), "the same command resumes"
    assert good("evaluate", bundle.path, "--run", run, "--data", held)["loss"] == pytest.approx(
        again["after"]["loss"], abs=1e-6
    )
    assert "must be auto or a number" in bad(3, *asked[:-3], "none")
    other = json.dumps({**plain, "template": "{text} So"})
    (tmp_path / "task.json").write_text(other, encoding="utf-8")
    assert "the run has the task" in bad(7, *asked)

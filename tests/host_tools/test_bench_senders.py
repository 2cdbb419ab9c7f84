"""Ways to learn how a person writes: the split in time, scores of words, rivals, the summary."""

import math

import numpy as np
import pytest
from exported_bundle import request
from seedtune.host_tools.bench import senders
from seedtune.host_tools.bench.contenders import int4, lora
from seedtune.host_tools.bench.contenders import people as data
from seedtune.host_tools.bench.contenders.float_task import FloatTask
from seedtune.host_tools.bench.contenders.people import (
    SENDERS,
    SPEC,
    Person,
    load_person,
    sender_of,
)
from seedtune.host_tools.bench.contenders.people_methods import METHODS
from seedtune.host_tools.bench.measuring.next_words import figures, torch_score
from seedtune.host_tools.bench.measuring.program_words import ProgramWords
from seedtune.host_tools.bench.senders import bench_senders
from seedtune.host_tools.bench.summaries.senders import summarise_senders
from seedtune.runtime.errors import DataError, SeedtuneError
from seedtune.runtime.scoring import word_memory
from seedtune.runtime.scoring.text_head import TextHead
from seedtune.runtime.scoring.text_part import TextPart
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.word_memory import Said, WordMemory, added, of_step, to_bytes
from seedtune.runtime.tasks import Batch

WORDS = ("the cat sat", "it was great", "on the mat", "a small town")
ROWS = [{"before": WORDS[n % 3], "reply": WORDS[(n + 1) % 4]} for n in range(24)]


def silent(line):
    pass


def test_the_split_is_in_time_and_the_gate_is_apart(monkeypatch):
    rows = [{"before": "hello", "reply": str(n), "chat": n} for n in range(400)]
    monkeypatch.setattr(data, "chat_replies", lambda sender: rows)
    person = load_person("any", 200)
    assert person.test == rows[-80:]
    assert person.train + person.held_out == rows[120:320]
    assert len(person.held_out) == 20
    assert len(load_person("any", 50).held_out) == 8
    assert load_person("any", 0) == Person([], [], rows[-80:])
    with pytest.raises(DataError, match="any: 320 messages before the test, not 321"):
        load_person("any", 321)


def test_a_sender_is_named_by_the_start_of_its_id():
    assert len(SENDERS) == 12
    assert all(sender_of(sender[:8]) == sender for sender in SENDERS)
    with pytest.raises(DataError, match="sender 'nobody' is not one of afe2b8b4, "):
        sender_of("nobody")


def test_figures_of_words():
    found = figures(
        [
            (np.log([0.5, 0.25]), np.array([0, 1])),
            (np.log([0.125, 0.0625]), np.array([2, 3])),
        ]
    )
    assert found == {"perplexity": pytest.approx(2**2.5), "top1": 0.25, "top3": 0.75, "tokens": 4}


def test_torch_scores_are_the_models_own(tiny_llama):
    import torch

    batch = Batch(
        np.arange(12).reshape(2, 6) + 30,
        np.array([1, 9]),
        np.array([[7], [8]]),
        np.zeros(2, np.int64),
    )
    logp, ranks = torch_score(tiny_llama.model)(batch)
    with torch.no_grad():
        logits = tiny_llama.model(torch.from_numpy(batch.tokens)).logits.flatten(0, 1)
    for at, position in enumerate(batch.positions):
        row = torch.log_softmax(logits[position], dim=-1)
        own = row[batch.candidates[at, 0]]
        assert logp[at] == pytest.approx(float(own), abs=1e-5)
        assert ranks[at] == int((row > own).sum())


def words_of(bundle):
    settings = {"bundle": bundle.path, "length": 32, "threads": None, "other": None}
    return ProgramWords(settings, SPEC)


def tuned(bundle, part):
    return Values(bundle.values.astype(np.float32), part)


def test_ranks_are_of_the_head_that_the_program_has(bundle):
    words = words_of(bundle)
    batch, _ = request(bundle, rows=2, length=12, scored=9, choices=1, probes=1)
    head = TextHead.of(bundle)
    assert head is not None
    weights = np.random.default_rng(0).standard_normal(head.entries).astype(np.float32)
    values = tuned(bundle, TextPart(head, np.float32(0.5) * weights))
    apart = []
    for row in (None, values):
        seen = words.see([batch], row)
        logits = seen.read @ head.words.vectors(slice(0, words.vocabulary)).T
        top = logits.max(axis=1, keepdims=True)
        logp = (logits - top) - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        # The program rounds what its head reads to int8.
        apart.append(np.abs(logp[np.arange(9), seen.gold] - seen.logp).mean())
    assert max(apart) < 0.15
    assert np.abs(words.see([batch], values).logp - words.see([batch]).logp).mean() > 0.25


def test_a_memory_has_its_part_in_ranks_and_probabilities(bundle):
    words = words_of(bundle)
    batch, _ = request(bundle, rows=2, length=12, scored=9, choices=1, probes=1)
    head = TextHead.of(bundle)
    assert head is not None
    texts = [Said(row[:2], row[2:]) for row in batch.tokens]  # a person who says just this
    kept = added(np.zeros(word_memory.WORDS, np.float32), of_step(to_bytes(texts)))
    own = np.concatenate([np.zeros(head.entries, np.float32), kept])
    seen = words.see([batch], tuned(bundle, TextPart(head, own)))
    plain = words.see([batch])
    logits = plain.read @ head.words.vectors(slice(0, words.vocabulary)).T
    every = np.tile(np.arange(words.vocabulary), (9, 1))
    memory = WordMemory(kept, words.vocabulary)
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    wanted = memory.mixed(logp, batch.tokens, batch.positions, every)
    gold = wanted[np.arange(9), seen.gold]
    found, start = words.figures(seen), words.figures(plain)
    ranks = (wanted > gold[:, None]).sum(axis=1)
    assert (found["top1"], found["top3"]) == ((ranks < 1).mean(), (ranks < 3).mean())
    # The program rounds what its head reads to int8.
    assert found["perplexity"] == pytest.approx(math.exp(-gold.mean()), rel=0.15)
    assert found["perplexity"] != start["perplexity"]


@pytest.mark.parametrize("method", ["text-head", "text-head-alone", "per-example", "start-int4"])
def test_the_programs_methods_tell_the_same_things(bundle, method):
    generator = np.random.default_rng(0)
    settings = {
        **METHODS[method].settings_for(50), "bundle": bundle.path, "length": 32, "threads": None,
        "messages": 50 if METHODS[method].learns else 0,
        "other": generator.integers(0, 300, (2, 16)),
    }  # fmt: skip
    if method == "per-example":
        settings["tuner"] = {**settings["tuner"], "steps": 2, "eval_every": 2}
    found = int4.run_on_person(Person(ROWS[:12], ROWS[12:18], ROWS[18:]), settings, silent)
    assert found["other"]["tokens"] == 2 * 15 and found["test"]["tokens"] > 10
    assert ("seconds" in found) == METHODS[method].learns
    if method.startswith("text-head"):
        assert 0 <= found["step"] <= 3


def test_lora_ships_the_epoch_that_held_out_messages_choose(tiny_llama_folder, monkeypatch):
    person = Person(ROWS[:12], ROWS[12:18], ROWS[18:])
    monkeypatch.setattr(
        FloatTask, "of", lambda model, data, settings, of=FloatTask.of: _small(of, model, data)
    )
    settings = {
        "source": str(tiny_llama_folder), "length": 24, "messages": 50, "seed": 0, "lr": 2e-2,
        "rank": 4, "alpha": 8, "epochs": 2,
    }  # fmt: skip
    start = lora.run_on_person(person, settings | {"messages": 0}, silent)
    found = lora.run_on_person(person, settings, silent)
    assert found["epochs"] > 0 and found["test"]["perplexity"] < start["test"]["perplexity"]
    assert found["seconds"] > 0 and found["peak_rss_bytes"] > 0
    tests = []
    # Perplexities of held-out messages before and after each epoch, given, for what a rate does to
    # them is not the same on every processor.
    for shipped, given in enumerate(([3.0, 4.0, 5.0], [3.0, 2.0, 2.5], [3.0, 2.0, 1.0])):
        monkeypatch.setattr(lora, "_perplexity", lambda *_, given=given: given.pop(0))
        found = lora.run_on_person(person, settings, silent)
        assert found["epochs"] == shipped and given == []
        tests.append(found["test"])
    assert tests[0] == start["test"] and tests[0] != tests[1] != tests[2]


def _small(of, model, data):
    cell = of(model, data, {"batch_size": 4, "length": 24, "test_rows": None})
    cell.generic_text = np.arange(64, dtype=np.int64).reshape(2, 32)
    return cell


def _row(method, sender, messages, perplexity, other):
    test = {"perplexity": perplexity, "top1": 0.25, "top3": 0.5, "tokens": 10}
    return {
        "method": method, "sender": sender, "settings": {"messages": messages}, "test": test,
        "other": {**test, "perplexity": other}, "seconds": 2.0, "cpu_seconds": 1.0,
        "peak_rss_bytes": 7,
    }  # fmt: skip


def test_the_summary_compares_with_the_untouched_model():
    rows = [
        _row("start-int4", "a", 0, 80.0, 40.0),
        _row("start-int4", "b", 0, 60.0, 40.0),
        _row("text-head", "a", 200, 40.0, 44.0),
        _row("text-head", "b", 200, 61.0, 40.0),
        _row("text-head", "c", 200, 1.0, 1.0),  # whose start was not measured
        _row("ngram", "a", 200, 50.0, 44.0),  # no longer run
    ]
    summary = summarise_senders({str(n): row for n, row in enumerate(rows)})
    line, last = summary["table"]
    assert (last["method"], last["people"], last["helped"]) == ("ngram", 1, 1)
    assert (line["method"], line["messages"], line["people"]) == ("text-head", 200, 2)
    assert line["gain"]["mean"] == pytest.approx((math.log(2) + math.log(60 / 61)) / 2)
    assert line["gain"]["least"] == pytest.approx(math.log(60 / 61))
    assert (line["helped"], line["harmed"]) == (1, 1)
    assert line["other_rise"] == {"mean": pytest.approx(0.05), "largest": pytest.approx(0.1)}
    assert line["start"]["perplexity"] == pytest.approx(math.sqrt(80 * 60))


def test_a_finished_cell_is_not_run_again(bundle, exported_folder, tmp_path, monkeypatch):
    sender = next(iter(SENDERS))
    rows = [{"before": "hello", "reply": WORDS[n % 4], "chat": n} for n in range(140)]
    monkeypatch.setattr(data, "chat_replies", lambda sender: rows)
    monkeypatch.setattr(senders, "_other_text", lambda model: np.arange(32).reshape(2, 16))
    given = {
        "senders": (sender[:8],), "messages": (50,), "bundle": bundle.path, "threads": 1,
        "model": str(exported_folder / "hf"), "results": tmp_path, "progress": silent,
    }  # fmt: skip
    asked = {"methods": ("start-int4", "text-head"), **given}
    found = bench_senders(**asked)
    (line,) = found["table"]
    assert (line["method"], line["people"], line["helped"]) == ("text-head", 1, 1)
    monkeypatch.setattr(senders, "_other_text", None)  # would be called for a cell to compute
    assert bench_senders(**asked) == found
    with pytest.raises(SeedtuneError, match="unknown method 'none'; known: start-int4, "):
        bench_senders(**given, methods=("none",))

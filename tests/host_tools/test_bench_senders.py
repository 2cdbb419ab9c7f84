"""Ways to learn how a person writes: the split in time, scores of words, rivals, the summary."""

import math

import numpy as np
import pytest
from seedtune.host_tools.bench import senders
from seedtune.host_tools.bench.contenders import int4, lora
from seedtune.host_tools.bench.contenders import people as data
from seedtune.host_tools.bench.contenders.float_task import FloatTask
from seedtune.host_tools.bench.contenders.people import (
    METHODS,
    SENDERS,
    Person,
    load_person,
    sender_of,
)
from seedtune.host_tools.bench.senders import bench_senders, summarise_senders
from seedtune.runtime.errors import DataError, SeedtuneError

WORDS = ("the cat sat", "it was great", "on the mat", "a small town")
ROWS = [{"before": WORDS[n % 3], "reply": WORDS[(n + 1) % 4]} for n in range(24)]


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
    found = int4.run_on_person(Person(ROWS[:12], ROWS[12:18], ROWS[18:]), settings)
    assert found["other"]["perplexity"] > 1 and found["test"]["perplexity"] > 1
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
    start = lora.run_on_person(person, settings | {"messages": 0})
    found = lora.run_on_person(person, settings)
    assert found["epochs"] > 0 and found["test"]["perplexity"] < start["test"]["perplexity"]
    assert found["seconds"] > 0 and found["peak_rss_bytes"] > 0
    tests = []
    # Perplexities of held-out messages before and after each epoch, given, for what a rate does to
    # them is not the same on every processor.
    for shipped, given in enumerate(([3.0, 4.0, 5.0], [3.0, 2.0, 2.5], [3.0, 2.0, 1.0])):
        monkeypatch.setattr(lora, "_perplexity", lambda *_, given=given: given.pop(0))
        found = lora.run_on_person(person, settings)
        assert found["epochs"] == shipped and given == []
        tests.append(found["test"])
    assert tests[0] == start["test"] and tests[0] != tests[1] != tests[2]


def _small(of, model, data):
    cell = of(model, data, {"batch_size": 4, "length": 24, "test_rows": None})
    cell.generic_text = np.arange(64, dtype=np.int64).reshape(2, 32)
    return cell


def _row(method, sender, messages, perplexity, other):
    test = {"perplexity": perplexity}
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
    monkeypatch.setattr(senders, "_other_text", lambda: np.arange(32).reshape(2, 16))
    monkeypatch.setattr(senders, "fetch", lambda name: exported_folder / "hf")
    given = {
        "senders": (sender[:8],), "messages": (50,), "bundle": bundle.path, "threads": 1,
        "results": tmp_path,
    }  # fmt: skip
    asked = {"methods": ("start-int4", "text-head"), **given}
    found = bench_senders(**asked)
    (line,) = found["table"]
    assert (line["method"], line["people"], line["helped"]) == ("text-head", 1, 1)
    monkeypatch.setattr(senders, "_other_text", None)  # would be called for a cell to compute
    assert bench_senders(**asked) == found
    with pytest.raises(SeedtuneError, match="unknown method 'none'; known: start-int4, "):
        bench_senders(**given, methods=("none",))

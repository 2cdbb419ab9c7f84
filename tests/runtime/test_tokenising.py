"""Tokenizers that panic, fail or do not come back on some text: an error that names the row."""

import os
import threading

import pytest
from seedtune.runtime import open_model
from seedtune.runtime.bundle.parts import ChatPart
from seedtune.runtime.errors import DataError
from seedtune.runtime.tasks import encode_rows, task_from_spec, tokenising
from tiny_bundle import BOUNDS, TASK, tiny_tokenizer, write_tiny_bundle
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

PANICS = r"(a|aa)+$"
"""On some dozens of ``a`` and another letter the library's search gives up, by a panic."""
SLOW = r"a(?:a{0,30}){4}(?!a)(?<!a)"
"""Tries all ways to cut a row of ``a`` in four, from each of them on, and finds none."""


def task_with(pattern, spec=TASK):
    tokenizer = tiny_tokenizer()
    own = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [own, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return task_from_spec(spec, tokenizer, BOUNDS, 0)


def rows_file(folder, *texts):
    file = folder / "rows.csv"
    file.write_text("label,text\n" + "".join(f"0,{text}\n" for text in texts))
    return file


def test_a_panic_names_file_and_row(tmp_path):
    file = rows_file(tmp_path, "good", "a" * 60 + "b")
    with pytest.raises(DataError, match=r"rows\.csv:3: the bundle's tokenizer fails on this text"):
        encode_rows(task_with(PANICS), file)


def test_a_panic_over_the_template_names_the_task():
    with pytest.raises(DataError, match=r"^task: the bundle's tokenizer fails on this text"):
        task_with(PANICS, {**TASK, "template": "a" * 60 + "b {text} It was"})


def test_an_error_of_the_library_names_the_row():
    """It raises plain ``Exception``, here for a word that it lacks."""
    words = Tokenizer(models.WordLevel({"good": 0, "It": 1, "was": 2, " ": 3}, unk_token="none"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    spec = {"kind": "completion", "template": "{text}", "completion_field": "text"}
    task = task_from_spec(spec, words, BOUNDS, 0)
    rows = [{"text": "good "}, {"text": "bad "}]
    with pytest.raises(DataError, match=r"^row 2: .* fails on this text \(WordLevel error"):
        encode_rows(task, rows)


def test_a_text_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "SECONDS", 0.2)
    task = task_with(SLOW)
    with pytest.raises(DataError, match=r"rows\.csv:2: .* has not come to an end after .* shorten"):
        encode_rows(task, rows_file(tmp_path, "a" * 120))
    # What was left behind ends by itself, and then waits for nobody.
    left = [each for each in threading.enumerate() if each.name == "seedtune-tokenising"]
    assert left and all(each.daemon for each in left)
    assert encode_rows(task, [{"text": "good", "label": "1"}])[0].gold == 1


def test_other_errors_are_raised_as_they_are():
    def broken(watch):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        tokenising.watched(broken, "task")


@pytest.mark.parametrize("own", [None, "true"])
def test_the_library_s_own_threads_stay_as_they_were_set(monkeypatch, own):
    if own is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    else:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", own)
    inside = tokenising.watched(lambda watch: os.environ["TOKENIZERS_PARALLELISM"], "task")
    assert (inside, os.environ.get("TOKENIZERS_PARALLELISM")) == ("false", own)


def test_a_template_s_endless_loop_is_given_up_in_a_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "SECONDS", 0.2)
    loop = "{% for m in messages %}{% for i in range(99999) %}{% for j in range(99999) %}"
    loop += "{% endfor %}{% endfor %}{% endfor %}"
    bundle = write_tiny_bundle(tmp_path / "b", chat=ChatPart(loop, {}))
    messages = [{"role": "user", "content": "hi"}]
    before = set(threading.enumerate())
    with open_model(bundle) as model:
        with pytest.raises(DataError, match=r"^the prompt: .* template has not come to an end"):
            model.prompt_tokens(messages)
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
            assert not thread.is_alive(), "the loop was broken off"

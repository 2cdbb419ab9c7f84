"""Words that a run keeps, from the command line: they have their part, and they can be left out."""

import json

import numpy as np
import pytest
from command_line import bad, call, good
from seedtune.runtime import open_model
from seedtune.runtime.scoring.parts import kinds_of
from seedtune.runtime.scoring.text_part import TextPart
from seedtune.runtime.scoring.values_file import load_values
from seedtune.runtime.scoring.word_memory import WORDS
from tiny_model import write_tiny_llama

SPEC = {"kind": "completion", "template": "{text}", "completion_field": "more"}
REPLY = " the actors were bad"
ROWS = [{"text": text, "more": REPLY} for text in ("a dull plot", "the film was", "so I left")]


@pytest.fixture
def files(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "task.json").write_text(json.dumps(SPEC))
    return tmp_path


def tune(bundle, files, name, *more):
    rows = files / "rows.jsonl"
    return good(
        "tune", bundle.path, files / name, "--task", files / "task.json", "--train", rows,
        "--test", rows, "--steps", 4, "--batch-size", 3, *more,
    )  # fmt: skip


def held(file, bundle):
    """Whether a values file holds words."""
    part = load_values(file, bundle, kinds_of(bundle)).part
    assert isinstance(part, TextPart) and len(part.words) in (0, WORDS)
    return bool(part.words.any())


def nll(bundle, source):
    with open_model(bundle, task=SPEC) as model:
        model.load(source)
        return float(np.mean([found.scores["nll"] for found in model.predict(ROWS)]))


def test_words_are_known_again_unless_asked_otherwise(bundle, files):
    tune(bundle, files, "run")
    tune(bundle, files, "none", "--no-remember")
    assert held(files / "run" / "values.safetensors", bundle)
    assert not held(files / "none" / "values.safetensors", bundle)
    assert nll(bundle, files / "run") < nll(bundle, files / "none") - 0.3
    shown = good("journal", "show", files / "none")
    assert shown["settings"]["remember"] is False


def test_a_text_is_gone_on_with_as_the_user_does(bundle, files):
    tune(bundle, files, "run")
    with open_model(bundle, task=SPEC) as model:
        model.load(files / "run")
        # Of a model of random weights the memory's part is nearly all.
        text = "a dull plot" + REPLY + " so I left the actors"
        found = "".join(model.generate(text, max_tokens=4))
        assert REPLY.split(" actors")[1].startswith(found)
    told = good(
        "generate", bundle.path, "--run", files / "run", "--prompt", text, "--max-tokens", 4
    )
    assert told["text"] == found


def test_single_texts_and_spans_are_forgotten(bundle, files):
    run = files / "run"
    tune(bundle, files, "run")
    found = good("journal", "words", run, bundle.path)
    told = found["remembered"]
    assert found["texts"] == len(told) == 3
    assert found["words"] == sum(one["words"] for one in told) > 9
    assert all(one["text"].strip().endswith(REPLY.strip()) and one["times"] >= 1 for one in told)
    shown = call("journal", "words", run, bundle.path)
    assert shown.exit_code == 0 and shown.stdout.count("the actors were bad") == 3
    page = json.loads((run / "outcome.json").read_text())["remembered"]
    assert [one["text"] for one in page] == [one["text"] for one in told]
    good("report", run)
    html = (run / "report.html").read_text()
    assert "Words that it remembers" in html and html.count("the actors were bad") >= 3

    first, second, third = (one["text"] for one in told)
    good("journal", "forget", run, bundle.path, "--text", first.upper(), "--text", f" {third} ")
    left = good("journal", "words", run, bundle.path)["remembered"]
    assert [one["text"] for one in left] == [second]
    told = bad(5, "journal", "forget", run, bundle.path, "--since", "yesterday")
    assert "--since 'yesterday' must be a time such as" in told
    assert "since then" in bad(5, "journal", "forget", run, bundle.path, "--since", "2200-01-01")
    good("journal", "forget", run, bundle.path, "--since", "2h")
    assert good("journal", "words", run, bundle.path)["remembered"] == []


def test_values_are_exported_without_words(bundle, files):
    tune(bundle, files, "run")
    for more, wanted in (((), True), (("--without-words",), False)):
        file = files / f"v{wanted}"
        good("journal", "export", files / "run", bundle.path, file, *more)
        assert held(file, bundle) is wanted


def test_the_page_of_a_run_shows_what_it_writes(bundle, files):
    tune(bundle, files, "run")
    samples = json.loads((files / "run" / "outcome.json").read_text())["samples"]
    assert [one["prompt"] for one in samples] == [row["text"] for row in ROWS]
    assert all(one["right"].startswith(REPLY) for one in samples)
    with open_model(bundle, task=SPEC) as model:
        for source, when in ((None, "before"), (files / "run", "after")):
            if source is not None:
                model.load(source)
            written = [model.predict({"text": row["text"]}).answer or "" for row in ROWS]
            # Those of the page are shorter.
            assert all(
                text.startswith(one[when]) for text, one in zip(written, samples, strict=True)
            )
    good("report", files / "run")
    assert "What it writes" in (files / "run" / "report.html").read_text()


def test_merging_tells_that_the_words_stay_behind(bundle, files):
    tune(bundle, files, "run")
    source = write_tiny_llama(files / "hf")
    told = call("merge", bundle.path, source, files / "out", "--run", files / "run")
    assert told.exit_code == 0 and "the memory of words has no part in it" in told.stderr
    with open_model(bundle, task=SPEC) as model:
        model.load(files / "run")
        kept = [int(number) for number in model.values.words if number]
        tokens = np.asarray(model.encode(ROWS[:1])[0].tokens).reshape(-1).tolist()
        said = model.bundle.tokenizer().decode(tokens)
    traces = {said.encode(), REPLY.encode()}
    for place in range(len(kept) - 3):
        four = np.array(kept[place : place + 4])
        for numbers in (four, np.abs(four), np.abs(four) - 1):
            traces |= {numbers.astype(kind).tobytes() for kind in ("<f4", "<f8", "<i4", "<i8")}
            traces.add(", ".join(map(str, numbers.tolist())).encode())

    def found_in(folder):
        every = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
        return any(trace in data for trace in traces for data in every)

    assert found_in(files / "run") and not found_in(files / "out")
    for to in ("peft", "gguf"):
        bad(8, "merge", bundle.path, source, files / to, "--run", files / "run", "--to", to)
        assert not (files / to).exists()

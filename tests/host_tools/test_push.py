"""``seedtune push``: what goes up, what stays, what the card says, and the way back."""

import contextlib
import io
import json
import re

import pytest
import yaml
from command_line import bad, call, good
from doc_pages import blocks_of, commands_of, names, write_files
from exported_bundle import ORIGIN
from hub_stand_in import READER, WRITER, ask, running_hub
from seedtune.runtime.bundle import pack_bundle
from seedtune.runtime.scoring.parts import kinds_of
from seedtune.runtime.scoring.values_file import load_values
from tiny_bundle import TASK, bundle_parts, with_task, write_tiny_bundle

ROWS = [
    {"text": f"{text}, zebra" if text else "", "label": label}
    for text, label in (
        ("a dull plot", "0"), ("the film was great", "1"), ("so I left", "0"), ("it was good", "1"),
        ("actors were bad", "0"), ("ünseen", "1"), ("", "1"),
    )
]  # fmt: skip
TEXTS = {"kind": "completion", "template": "{label}", "completion_field": "text"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """With somebody logged in who may write."""
    with running_hub() as found:
        ask(monkeypatch, found, tmp_path / "hf", WRITER)
        yield found


@pytest.fixture
def files(tmp_path):
    for name, task, rows in (("rows", TASK, ROWS), ("texts", TEXTS, ROWS[:-1])):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (tmp_path / f"{name}.json").write_text(json.dumps(task))
    return tmp_path


def tune(bundle, files, estimator, *more):
    kind = "texts" if estimator == "text-head" else "rows"
    task, rows = files / f"{kind}.json", files / f"{kind}.jsonl"
    good(
        "tune", bundle.path, files / estimator, "--task", task, "--train", rows, "--data", rows,
        "--estimator", estimator, "--steps", 3, "--batch-size", 4, *more,
    )  # fmt: skip
    return files / estimator


def pushed(hub, name):
    return hub.repositories[f"models/{name}"].files


def card(hub, name):
    """Its metadata and its text."""
    _, metadata, text = pushed(hub, name)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def do_as_the_card_says(text):
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    told, left = io.StringIO(), {}
    with contextlib.redirect_stdout(told):
        exec(block, left)
    left["model"].close()
    return told.getvalue().strip()


def test_a_bundle_goes_up_and_comes_back(hub, bundle, tmp_path, monkeypatch):
    whole = with_task(bundle, tmp_path / "with-task", TASK)
    archive = pack_bundle(whole.path, tmp_path / "b.seedtune")
    with monkeypatch.context() as unpacking:
        unpacking.setenv("SEEDTUNE_CACHE", str(tmp_path / "own"))
        found = good("push", archive, "hf://me/tuned")
    repository = hub.repositories["models/me/tuned"]
    assert found["commit"] == repository.names["main"] and repository.private
    assert {*found["files"]} == {"manifest.json", "README.md", *whole.manifest["parts"]}
    assert good("push", whole.path, "hf://me/tuned")["commit"] == found["commit"]  # nothing new
    ask(monkeypatch, hub, tmp_path / "elsewhere", READER)
    assert good("inspect", "hf://me/tuned")["sha256"] == whole.sha256
    metadata, text = card(hub, "me/tuned")
    assert metadata["library_name"] == "seedtune" and "license" not in metadata
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["base_model"] == "org/tiny" and f"| base model | {ORIGIN} |" in text
    assert whole.sha256 in text and '"template": "{text} It was"' in text
    assert do_as_the_card_says(text) in TASK["verbalisers"]


def test_a_run_goes_up_and_is_gone_on_with_elsewhere(hub, bundle, files, monkeypatch):
    run = tune(bundle, files, "two-point", "--lr", "0.01")
    good("push", bundle.path, "hf://me/tuned")
    result = call("push", run, "hf://me/run", "--bundle", "hf://me/tuned")
    assert result.exit_code == 0 and "the journal goes with it" in result.stderr
    assert {"tuned.safetensors", "journal.bin", "task.json"} <= {*pushed(hub, "me/run")}
    rows = files / "rows.jsonl"
    here = good("evaluate", bundle.path, "--run", run, "--data", rows)
    ask(monkeypatch, hub, files / "elsewhere", READER)
    there = ("--values", "hf://me/run/tuned.safetensors", "--task", "hf://me/run/task.json")
    far = good("evaluate", "hf://me/tuned", *there, "--data", rows)
    assert far["loss"] == pytest.approx(here["loss"], abs=1e-3) and far["values"] == there[1]
    hub.add("datasets/me/rows", {"train.jsonl": rows.read_bytes()})
    received = good("journal", "receive", "hf://me/run/journal.bin", "hf://me/tuned", files / "r")
    assert received["sha256"] == good("journal", "verify", run, bundle.path)["sha256"]
    data = "hf://datasets/me/rows/train.jsonl"
    on = good("tune", "hf://me/tuned", files / "r", "--train", data, "--data", data, "--steps", 4)
    assert on["steps"] == 4
    assert do_as_the_card_says(card(hub, "me/run")[1]) in TASK["verbalisers"]


def test_a_run_is_merged_into_a_model_on_the_hub(hub, bundle, files):
    run = tune(bundle, files, "two-point", "--lr", "0.01")
    hub.add("models/org/tiny", bundle.path.with_name("hf"))
    out = files / "adapter"
    told = good("merge", bundle.path, "hf://org/tiny", out, "--run", run, "--to", "peft")
    assert told["changed"] > 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"


def test_the_card_says_what_the_run_reported(hub, bundle, files):
    run = tune(bundle, files, "readout")
    good("push", run, "hf://me/run", "--bundle", bundle.path)
    _, text = card(hub, "me/run")
    outcome = json.loads((run / "outcome.json").read_text())
    assert f"on {outcome['judged_rows']} held-out rows, which decided nothing" in text
    for name in ("loss", "accuracy", "macro_f1"):
        before, after = (f"{outcome[when][name]:.6g}" for when in ("before", "after"))
        assert f"| {name} | {before} | {after} |" in text
    exported = good("journal", "export", run, bundle.path, files / "v.safetensors")
    assert exported["float16_sha256"] in text and bundle.sha256 in text
    assert f"`readout`, step {exported['step']}" in text


@pytest.mark.parametrize("estimator", ["readout", "text-head", "per-example", "two-point"])
def test_no_text_of_a_row_goes_up(hub, bundle, files, estimator):
    run = tune(bundle, files, estimator)
    assert b"zebra" in (run / "outcome.json").read_bytes()
    result = call("push", run, "hf://me/run", "--bundle", bundle.path)
    assert result.exit_code == 0, result.output
    found = pushed(hub, "me/run")
    shared = estimator == "two-point"
    assert ("journal.bin" in found) is shared
    assert ("holds numbers of single examples" in result.stderr) is not shared
    for name, data in found.items():
        assert b"zebra" not in data and "ünseen".encode() not in data, name


def test_words_stay_unless_they_are_asked_for(hub, bundle, files):
    run = tune(bundle, files, "text-head")
    pushing = ("push", run, "hf://me/run", "--bundle", bundle.path)
    kept, told = {}, {}
    for more in ((), ("--with-words",)):
        result = call(*pushing, *more)
        told[more] = "words of the texts stay here" in result.stderr
        file = files / "pushed.safetensors"
        file.write_bytes(pushed(hub, "me/run")["tuned.safetensors"])
        part = load_values(file, bundle, kinds_of(bundle)).part
        assert part is not None and part.own.any()
        kept[more] = bool(part.words.any())
        assert ("measured with a memory of the owner's words" in card(hub, "me/run")[1]) is not more
    assert kept == {(): False, ("--with-words",): True}
    assert told == {(): True, ("--with-words",): False}


def test_numbers_of_a_single_row_stay(hub, bundle, files):
    line = (files / "rows.jsonl").read_text().splitlines()[0]
    (files / "one.jsonl").write_text(line + "\n")
    run = tune(bundle, files, "readout", "--test", files / "one.jsonl")
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["judged_rows"] == 1
    good("push", run, "hf://me/run", "--bundle", bundle.path)
    _, text = card(hub, "me/run")
    assert "on one, whose numbers stay with its owner" in text
    assert f"{outcome['after']['loss']:.6g}" not in text


def test_a_push_replaces_what_the_one_before_it_left(hub, bundle, files):
    runs = [tune(bundle, files, estimator) for estimator in ("two-point", "readout")]
    good("push", runs[0], "hf://me/run", "--bundle", bundle.path)
    hub.repositories["models/me/run"].files["notes.txt"] = b"mine"
    good("push", runs[1], "hf://me/run", "--bundle", bundle.path)
    found = pushed(hub, "me/run")
    assert "journal.bin" not in found and found["notes.txt"] == b"mine"
    assert "journal receive" not in card(hub, "me/run")[1]


def test_base_model_and_licence_are_those_of_the_hub(hub, tmp_path):
    base = hub.add("models/org/base", {"README.md": "---\nlicense: llama3.2\n---\n", "a": "b"})
    (commit,) = base.commits
    origin = f"hf://org/base@{commit}"
    model = {**bundle_parts()["model"], "name": "org/base|x", "origin": origin}
    made = write_tiny_bundle(tmp_path / "b", model=model)
    good("push", made.path, "hf://me/tuned", "--public")
    metadata, text = card(hub, "me/tuned")
    assert (metadata["base_model"], metadata["license"]) == ("org/base", "llama3.2")
    assert f"| base model | {origin} |" in text and not hub.repositories["models/me/tuned"].private
    del hub.repositories["models/org/base"]
    good("push", made.path, "hf://me/other")
    assert "| licence of the base model | not known here |" in card(hub, "me/other")[1]
    fetched = write_tiny_bundle(
        tmp_path / "f", model={**model, "name": "smollm2-135m", "origin": None}
    )
    good("push", fetched.path, "hf://me/other")
    metadata, text = card(hub, "me/other")
    assert metadata["license"] == "apache-2.0" and "base_model" not in metadata


def test_demonstrations_are_a_part_of_the_task_and_said(hub, tmp_path):
    task = {**TASK, "demonstrations": [{"text": "zebra", "label": "1"}]}
    made = write_tiny_bundle(tmp_path / "b", task=task)
    result = call("push", made.path, "hf://me/tuned")
    assert result.exit_code == 0 and "demonstrations, which are rows, go with it" in result.stderr
    _, text = card(hub, "me/tuned")
    assert "zebra" not in text and "With 1 demonstrations in front" in text


def test_who_may_not_write_is_told_what_to_do(hub, tmp_path, monkeypatch):
    made = write_tiny_bundle(tmp_path / "b").path
    hub.add("models/me/there", {"a": "b"})
    for name in ("hf://me/new", "hf://me/there"):
        monkeypatch.setenv("HF_TOKEN", READER)
        assert "the token has no right to do so: type 'hf auth login'" in bad(9, "push", made, name)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert "the hub does not know the token" in bad(9, "push", made, name)
        monkeypatch.delenv("HF_TOKEN")
        assert "type 'hf auth login'" in bad(9, "push", made, name)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert "the token has no right" in bad(9, "push", made, "hf://you/new")
    assert "no such revision" in bad(9, "push", made, "hf://me/there@none")
    assert [*hub.repositories] == ["models/me/there"] and [*pushed(hub, "me/there")] == ["a"]


def test_an_upload_that_breaks_off_leaves_what_was_there(hub, tmp_path, monkeypatch):
    import huggingface_hub.utils._http as client

    monkeypatch.setattr(client.time, "sleep", lambda _: None)  # between its attempts
    made = write_tiny_bundle(tmp_path / "b")
    hub.add("models/me/tuned", {"a": "b"})
    hub.uploads_fail = True
    assert "check the connection and try again" in bad(9, "push", made.path, "hf://me/tuned")
    assert [*pushed(hub, "me/tuned")] == ["a"]
    hub.uploads_fail = False
    good("push", made.path, "hf://me/tuned")
    assert good("inspect", "hf://me/tuned")["sha256"] == made.sha256
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in bad(9, "push", made.path, "hf://me/tuned")


def test_what_cannot_be_pushed_is_refused_first(hub, bundle, files):
    run = tune(bundle, files, "readout")
    for place in ("me/run", "hf://datasets/me/rows", "hf://me/run/sub", str(files)):
        assert "must be a repository to push to" in bad(9, "push", run, place)
    assert "say with --bundle which bundle it tuned" in bad(1, "push", run, "hf://me/run")
    told = bad(1, "push", bundle.path, "hf://me/run", "--bundle", bundle.path)
    assert "is no run; leave out --bundle" in told
    told = bad(1, "push", bundle.path, "hf://me/run", "--with-words")
    assert "is no run; leave out --with-words" in told
    assert "no such bundle" in bad(4, "push", files / "none", "hf://me/run")
    other = write_tiny_bundle(files / "b").path
    assert "bundle" in bad(5, "push", run, "hf://me/run", "--bundle", other)
    assert hub.repositories == {}


def test_the_page_works_as_it_stands(hub, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files("docs/classification.md", tmp_path)
    (tmp_path / "model.seedtune").symlink_to(bundle.path)
    hub.add("datasets/me/rows", {"train.jsonl": (tmp_path / "train.jsonl").read_bytes()})
    shown = [
        command
        for block in blocks_of("docs/places.md")
        if block.language == "console"
        for command in commands_of(block)
    ]
    assert len(shown) == 5
    for command in shown:
        result = call(*command.arguments)
        assert result.exit_code == 0, result.output
        said = {names(line) for line in result.output.splitlines() if line.strip()}
        assert {names(line) for line in command.shown} <= said
    assert {"journal.bin", "task.json"} <= {*pushed(hub, "me/film-run")}

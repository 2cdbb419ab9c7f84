"""What a command is given: tasks and rows are refused, and traps told, before anything is loaded.

The bundle's program is only bytes: no engine opens it, which is the last that these commands do.
"""

import json

import pytest
from command_line import bad, call, good
from seedtune.host_tools.cli import app
from seedtune.host_tools.commands.inputs import ChosenTask
from seedtune.runtime import engines
from seedtune.runtime.bundle import Bundle
from tiny_bundle import TASK, write_tiny_bundle
from typer.testing import CliRunner
from value_engine import ValueEngine

NO_ENGINE = 6


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "bundle").path


def task_file(folder, spec):
    file = folder / "task.json"
    file.write_text(json.dumps(spec))
    return file


def rows_file(folder, name, *rows):
    file = folder / name
    file.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    return file


def warnings_of(*arguments):
    """Of a command whose input is sound, so that it comes to opening the program."""
    result = call(*arguments)
    assert result.exit_code == NO_ENGINE, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    return [line.removeprefix("warning: ") for line in lines]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "task: must be an object with a field 'kind', not a list"),
        (
            {"kind": "completion", "template": "", "completion": "reply"},
            "'completion' of a completion task is unknown; did you mean 'completion_field'?",
        ),
        (float("nan"), "not JSON (NaN is no number; write null or leave the row out)"),
    ],
)
def test_a_wrong_task_is_refused_before_the_model_is_loaded(
    tmp_path, bundle, monkeypatch, spec, message
):
    file = task_file(tmp_path, spec)
    monkeypatch.setattr(Bundle, "tokenizer", lambda self: pytest.fail("loaded"))
    error = bad(3, "evaluate", bundle, "--task", file)
    assert error.startswith(f"{file}: ") and message in error


def test_traps_are_told_once_each(tmp_path, bundle):
    spec = TASK | {"template": "{text} It was ", "verbalisers": {"0": " bad", "1": " good film"}}
    train = rows_file(tmp_path, "train.jsonl", ("the", 1), ("a plot", 1), ("", 1))
    held_out = rows_file(
        tmp_path, "held_out.jsonl", ("the", 1), ("a plot", 1), ("a film", 0), ("", 0)
    )
    found = warnings_of("tune", bundle, tmp_path / "run", "--task", task_file(tmp_path, spec),
                        "--train", train, "--data", held_out)  # fmt: skip
    assert [line.split(": ")[0] for line in found[:2]] == ["task", "task"]
    for part, line in zip(
        (
            "the template ends in a blank",
            "only the first token is scored: ' good' of ' good film'",
            f"{train}:3: no text in text; leave such rows out",
            f"{held_out}:4: no text in text; leave such rows out",
            "2 of the 2 rows that judge are training rows, too",
            "all 3 training rows have the label '1'",
            "1 of 2 held-out rows are training rows, too",
        ),
        found,
        strict=True,
    ):
        assert part in line


def test_sound_input_is_silent(tmp_path, bundle):
    train = rows_file(tmp_path, "train.jsonl", ("the", 1), ("a plot", 0))
    assert warnings_of("tune", bundle, tmp_path / "run", "--train", train) == []


def test_rows_from_standard_input(bundle):
    given = b'{"text": "the", "label": 1}\n{"text": "the", "label": 8}\n'
    result = CliRunner().invoke(app, ["evaluate", str(bundle), "--data", "-"], input=given)
    assert result.exit_code == 3
    assert "error: stdin:2: unknown label '8'; known labels: 0, 1" in result.stderr


def test_more_labels_than_the_bundle_scores_names_the_option(tmp_path, bundle):
    words = {str(n): word for n, word in enumerate((" bad", " good", " film", " plot", " the"))}
    spec = task_file(tmp_path, TASK | {"verbalisers": words})
    rows = rows_file(tmp_path, "rows.jsonl", ("the", 1))
    assert "--candidates" in bad(3, "evaluate", bundle, "--task", spec, "--data", rows)


class TestTaskInWords:
    """``tune --template ... --labels ...``, without a file."""

    @pytest.mark.parametrize(
        ("template", "labels", "words"),
        [
            ("{text} It was", "great,bad", {"great": " great", "bad": " bad"}),
            ("{text} It was", "1=great, 0 = bad", {"1": " great", "0": " bad"}),
            ("{text}\\nGood? ", "yes,no", {"yes": "yes", "no": "no"}),
        ],
    )
    def test_it_is_a_classification(self, template, labels, words):
        spec = ChosenTask.of_words(template, labels).spec
        assert spec == {
            "kind": "classification",
            "template": template.replace("\\n", "\n"),
            "label_field": "label",
            "verbalisers": words,
        }

    def test_a_run_keeps_it(self, tmp_path, bundle, monkeypatch):
        monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
        rows = rows_file(tmp_path, "rows.jsonl", *[(f"plot {n}", n % 2) for n in range(8)])
        asked = ["--template", "{text}. It was", "--labels", "1=great,0=bad"]
        good("tune", bundle, tmp_path / "run", "--train", rows, "--steps", 2, "--batch-size", 4,
             "--eps", 0.01, "--lr", 0.01, *asked)  # fmt: skip
        task = good("journal", "show", tmp_path / "run")["task"]["spec"]
        assert task["template"] == "{text}. It was" and task["verbalisers"]["0"] == " bad"
        assert set(good("predict", bundle, "--run", tmp_path / "run", "--text", "dull")
                   ["predictions"][0]["scores"]) == {"0", "1"}  # fmt: skip

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--template", "{text}"], "give --template and --labels together"),
            (["--labels", "a,b"], "give --template and --labels together"),
            (["--task", "sst2", "--template", "x", "--labels", "a,b"], "or --task alone"),
            (["--template", "{text}", "--labels", "a,,b"], "must be words such as 'good,bad'"),
            (["--template", "{text}", "--labels", "a=x,b="], "must be words such as 'good,bad'"),
            (["--template", "{text}", "--labels", "a=x,a=y"], "names a label twice"),
        ],
    )
    def test_what_makes_no_sense(self, tmp_path, bundle, more, message):
        assert message in bad(3, "tune", bundle, tmp_path / "run", *more)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a} {b}", "has the fields a, b; give rows of them with --data FILE"),
        ("plain", "has none; give a text to continue to 'seedtune generate --prompt'"),
    ],
)
def test_one_text_goes_into_one_field(tmp_path, bundle, template, message):
    task = task_file(tmp_path, {**TASK, "template": template})
    assert message in bad(3, "predict", bundle, "--text", "dull", "--task", task)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_answers_keep_to_a_memory_limit(tmp_path, bundle, monkeypatch, command):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    rows = rows_file(tmp_path, "rows.jsonl", ("great plot", 1), ("dull", 0))
    asked = command, bundle, "--data", rows, "--memory-limit"
    assert "the limit is 1 MB: raise the memory limit" in bad(7, *asked, "1MB")
    assert good(*asked, "50GB")["peak_rss_bytes"] > 0

"""``generate``, ``chat`` and ``merge`` on the exported tiny model."""

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from string import ascii_letters

import numpy as np
import pytest
from command_line import call, good
from seedtune.host_tools.cli import app
from seedtune.runtime import open_model
from seedtune.runtime.errors import SeedtuneWarning
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.scoring.values_file import export_values
from tiny_bundle import write_tiny_bundle
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def tuned(bundle, tmp_path_factory):
    """Values that say something else."""
    file = tmp_path_factory.mktemp("tuned") / "values.safetensors"
    noise = np.random.default_rng(0).standard_normal(bundle.K, np.float32)
    export_values(file, Values(bundle.values + np.float32(0.5) * noise), bundle, step=3)
    return file


def test_generate_streams_or_tells(bundle, tuned):
    asked = ("generate", bundle.path, "--prompt", "It was", "--max-tokens", 8)
    found = good(*asked)
    with open_model(bundle) as model:
        wanted = "".join(model.generate("It was", max_tokens=8))
    assert found["text"] == wanted and found["tokens"] == 8 and found["ended"] == "max_tokens"
    assert found["values"] == "the bundle, untuned"
    streamed = call(*asked)
    assert streamed.exit_code == 0 and streamed.stdout == wanted + "\n"
    other = good(*asked, "--values", tuned)
    assert other["text"] != wanted and other["values"] == str(tuned)


def test_generate_answers_messages_and_stdin(bundle, tmp_path):
    messages = [{"role": "user", "content": "good?"}]
    file = tmp_path / "messages.json"
    for content in (messages, {"messages": messages}):
        file.write_text(json.dumps(content))
        found = good("generate", bundle.path, "--messages", file, "--max-tokens", 4)
        with open_model(bundle) as model:
            assert found["text"] == "".join(model.generate(messages, max_tokens=4))
    asked = ["generate", str(bundle.path), "--prompt", "-", "--max-tokens", "4"]
    for given, text in (("It was", "It was"), ("It was\n", "It was"), ("It was\n\n", "It was\n")):
        plain = call("generate", bundle.path, "--prompt", text, "--max-tokens", 4)
        piped = CliRunner().invoke(app, asked, input=given)
        assert piped.exit_code == 0 and piped.stdout == plain.stdout


def test_a_penalty_of_repetition_is_handed_on(bundle):
    asked = ("generate", bundle.path, "--prompt", "It was", "--max-tokens", 12)
    texts = {}
    for penalty in (None, 0.0, 9.0):
        given = [] if penalty is None else ["--repetition-penalty", penalty]
        texts[penalty] = good(*asked, *given)["text"]
        with open_model(bundle) as model:
            wanted = model.generate("It was", max_tokens=12, repetition_penalty=penalty)
            assert texts[penalty] == "".join(wanted)
    assert texts[None] == texts[0.0] != texts[9.0]


def test_predict_answers_rows_that_bring_no_text(bundle, tmp_path):
    task, rows = tmp_path / "task.json", tmp_path / "rows.jsonl"
    spec = {"kind": "completion", "template": "{text}\nMia:", "completion_field": "reply"}
    task.write_text(json.dumps(spec))
    given = [{"text": "good?", "reply": " yes"}, {"text": "It was"}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    asked = ("predict", bundle.path, "--task", task)
    found = good(*asked, "--data", rows)["predictions"]
    assert found[0]["answer"] is None and found[0]["scores"]["tokens"] > 1
    with open_model(bundle) as model:
        wanted = "".join(model.generate("It was\nMia:", max_tokens=64))
    assert found[1] == {"answer": wanted, "scores": {}}
    assert good(*asked, "--text", "It was")["predictions"] == [found[1]]


def test_a_stop_text_that_the_shell_did_not_make_a_line_break_is_told(bundle):
    asked = ("generate", bundle.path, "--prompt", "It was", "--max-tokens", 2, "--stop")
    told = call(*asked, "\\n")
    assert told.exit_code == 0
    assert "warning: --stop \\n: a backslash and an n are no line break" in told.stderr
    assert "$'\\n' for one" in told.stderr
    assert call(*asked, "\n").stderr == ""


def test_weights_that_only_choose_are_told_of(bundle, tmp_path):
    rows = [{"text": f"It was {n}", "label": str(n % 2)} for n in range(8)]
    task = {"kind": "classification", "template": "{text} It was", "label_field": "label",
            "verbalisers": {"1": " great", "0": " terrible"}}  # fmt: skip
    words_of_many_tokens = pytest.warns(SeedtuneWarning, match="verbaliser")
    with words_of_many_tokens, open_model(bundle, task=task) as model:
        for estimator in ("readout", "two-point"):
            rates = {} if estimator == "readout" else {"lr": 1e-3, "eps": 1e-2}
            chosen = {"estimator": estimator, "steps": 1, "batch_size": 4, "eval_every": 0}
            with model.tuner(tmp_path / estimator, rows, **chosen, **rates) as tuner:
                list(tuner)
    asked = ("generate", bundle.path, "--prompt", "It was", "--max-tokens", 4)
    told = call(*asked, "--run", tmp_path / "readout")
    assert told.exit_code == 0 and told.stdout == call(*asked).stdout
    assert "weights that choose between given answers; these have no part in writing" in told.stderr
    assert call(*asked, "--run", tmp_path / "two-point").stderr == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a text with --prompt TEXT (- reads stdin) or messages with --messages FILE"),
        (["--prompt", "x " * 200], "a text here at most 128"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x", "--stop", ""], "stop[0] is ''"),
        (["--prompt", "x", "--top-p", "2"], "top_p is 2.0"),
        (["--messages", "no.json"], "no.json: cannot be read"),
        (["--prompt", "x", "--memory-limit", "1MB"], "raise the memory limit (--memory-limit"),
    ],
)
def test_bad_input_of_generate_is_one_line(bundle, options, message):
    result = call("generate", bundle.path, *options, "--json")
    assert result.exit_code not in (0, 2) and result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_a_bundle_that_only_scores_says_so(tmp_path):
    plain = write_tiny_bundle(tmp_path / "plain").path
    result = call("chat", plain)
    assert result.exit_code != 0 and "has no chat template" in result.stderr
    assert good("inspect", plain)["programs"][0]["methods"] == {"score": {}}
    assert "it only scores; export again" in call("inspect", plain).stdout


def test_inspect_says_what_a_bundle_writes(bundle):
    assert "texts of up to 128 tokens, and chats" in " ".join(
        call("inspect", bundle.path).stdout.split()
    )


def chatted(bundle, lines, *options):
    arguments = ["chat", bundle.path, "--max-tokens", 5, "--temperature", 0, *options]
    # A character from half of one stands for a byte that is no text.
    given = "".join(lines).encode(errors="surrogateescape")
    result = CliRunner().invoke(app, list(map(str, arguments)), input=given)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr


def test_chat_remembers_takes_back_and_switches(bundle, tuned):
    def answer(messages, values=None):
        turns = [
            {"role": role, "content": text}
            for text, role in zip(messages, ["user", "assistant"] * 9, strict=False)
        ]
        with open_model(bundle) as model:
            if values is not None:
                model.load(values)
            return "".join(model.generate(turns, max_tokens=5))

    first = answer(["good?"], tuned)
    second = answer(["good?", first, "bad?"], tuned)
    shown, notes = chatted(
        bundle,
        ["good?\n", "bad?\n", "/undo\n", "bad?\n", "/undo 7\n", "/tuned\n", "good?\n", "/huh\n",
         "/undo x\n", f"/undo {'9' * 5000}\n", "/help\n", "/quit\n", "never read\n"],
        "--values",
        tuned,
    )  # fmt: skip
    text = "\n".join(shown)
    assert text.startswith(f"{first}\n{second}\n")
    assert text == "\n".join([first, second, second, answer(["good?"])])
    for note in ("1 of 2 questions taken back", "2 of 2 questions", "original values",
                 "/huh is unknown", "give the number of questions", "Ctrl-C stops"):  # fmt: skip
        assert note in notes


def test_chat_leaves_the_oldest_out_and_needs_something_tuned(bundle):
    long = "the cat sat on the mat and looked " * 2
    _, notes = chatted(bundle, [f"{long}\n", f"{long}\n", f"{long}\n", "/tuned\n"])
    assert "the oldest messages no longer fit and were left out" in notes
    assert "nothing tuned was given" in notes


def test_a_question_that_cannot_be_asked_does_not_end_the_chat(bundle):
    lines = ["good?\n", "the cat sat on the mat " * 20 + "\n", "half \udce9\n", "bad?\n"]
    shown, notes = chatted(bundle, lines)
    assert shown == chatted(bundle, ["good?\n", "bad?\n"])[0]
    assert notes.count("error: ") == 2
    assert "a text here at most 128" in notes and "half a character" in notes


def test_answers_as_long_as_a_text_leave_room_for_what_was_said(bundle):
    soon = [option for letter in ascii_letters for option in ("--stop", letter)]
    lines = ["good?\n", "bad?\n"]
    shown, notes = chatted(bundle, lines, *soon, "--max-tokens", 128)
    assert "left out" not in notes
    assert shown == chatted(bundle, lines, *soon, "--max-tokens", 60)[0]


SLOWLY = """
import sys, time
from pathlib import Path
from seedtune.host_tools.cli import main
from seedtune.runtime.engines.text import Text
read, log = Text.read, Path(sys.argv.pop(1))
def slowly(self, tokens):
    with log.open("a") as file:
        file.write("read\\n")
    time.sleep(0.05)
    return read(self, tokens)
Text.read = slowly
main()
"""
"""The command line, where a token takes long enough to be interrupted, and is counted in a file."""


def test_ctrl_c_stops_an_answer_and_the_terminal_is_left_as_it_was(bundle, tmp_path):
    def whole(seed):
        asked = [{"role": "user", "content": "good?"}]
        writing = model.generate(asked, max_tokens=90, temperature=5.0, seed=seed)
        list(writing)
        return len(writing.tokens)

    with open_model(bundle) as model:
        seed = next(seed for seed in range(50) if whole(seed) == 90)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    reads = tmp_path / "reads"
    options = ["--max-tokens", "90", "--temperature", "5", "--top-p", "1", "--seed", str(seed)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(reads), "chat", str(bundle.path), *options],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip

    def until(reached):
        seen, end = "", time.monotonic() + 120
        while not reached(seen) and time.monotonic() < end:
            if select.select([ours], [], [], 0.05)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        assert reached(seen), seen

    def count():
        return len(reads.read_text().splitlines()) if reads.exists() else 0

    try:
        until(lambda seen: "> " in seen)
        os.write(ours, b"good?\n")
        until(lambda seen: count() >= 5)
        os.write(ours, termios.tcgetattr(theirs)[6][termios.VINTR])  # Ctrl-C, as it is typed
        until(lambda seen: seen.endswith("> "))
        os.write(ours, termios.tcgetattr(theirs)[6][termios.VEOF])  # Ctrl-D
        until(lambda seen: "\n" in seen and process.poll() is not None)
        assert process.returncode == 0
        # The prompt is read in one go; without Ctrl-C 89 more would follow for the 90 tokens.
        assert 5 <= count() < 60
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)

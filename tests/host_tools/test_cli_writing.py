"""``generate``, ``chat`` and ``merge`` on the exported tiny model."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
from command_line import bad, call, good
from exported_bundle import export_tiny_bundle
from seedtune.export.load_merged import HEAD_FILE, content_sha256, load_merged
from seedtune.host_tools.cli import app
from seedtune.runtime import open_model
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.bundle.exported_values import export_values
from seedtune.runtime.errors import SeedtuneWarning
from tiny_bundle import write_tiny_bundle
from tiny_model import CORPUS, write_tiny_llama
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_tiny_bundle(tmp_path_factory.getbasetemp() / "tiny")


@pytest.fixture(scope="module")
def tuned(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Values that say something else."""
    file = tmp_path_factory.mktemp("tuned") / "values.safetensors"
    noise = np.random.default_rng(0).standard_normal(bundle.K, np.float32)
    export_values(file, bundle.values + np.float32(0.5) * noise, bundle, step=3)
    return file


def test_generate_streams_or_tells(bundle: Bundle, tuned: Path) -> None:
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


def test_generate_answers_messages_and_stdin(bundle: Bundle, tmp_path: Path) -> None:
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


def test_a_stop_text_that_the_shell_did_not_make_a_line_break_is_told(bundle: Bundle) -> None:
    asked = ("generate", bundle.path, "--prompt", "It was", "--max-tokens", 2, "--stop")
    told = call(*asked, "\\n")
    assert told.exit_code == 0
    assert "warning: --stop \\n: a backslash and an n are no line break" in told.stderr
    assert "$'\\n' for one" in told.stderr
    assert call(*asked, "\n").stderr == ""


def test_weights_that_only_choose_are_told_of(bundle: Bundle, tmp_path: Path) -> None:
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
def test_bad_input_of_generate_is_one_line(
    bundle: Bundle, options: list[str], message: str
) -> None:
    result = call("generate", bundle.path, *options, "--json")
    assert result.exit_code not in (0, 2) and result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_a_bundle_that_only_scores_says_so(tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "plain").path
    result = call("chat", plain)
    assert result.exit_code != 0 and "has no chat template" in result.stderr
    assert good("inspect", plain)["programs"][0]["methods"] == {"score": {}}
    assert "it only scores; export again" in call("inspect", plain).stdout


def test_inspect_says_what_a_bundle_writes(bundle: Bundle) -> None:
    assert "texts of up to 128 tokens, and chats" in " ".join(
        call("inspect", bundle.path).stdout.split()
    )


def chatted(bundle: Bundle, lines: list[str], *options: object) -> tuple[list[str], str]:
    arguments = ["chat", bundle.path, "--max-tokens", 5, "--temperature", 0, *options]
    # A character from half of one stands for a byte that is no text.
    given = "".join(lines).encode(errors="surrogateescape")
    result = CliRunner().invoke(app, list(map(str, arguments)), input=given)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr


def test_chat_remembers_takes_back_and_switches(bundle: Bundle, tuned: Path) -> None:
    def answer(messages: list[str], values: Path | None = None) -> str:
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


def test_chat_leaves_the_oldest_out_and_needs_something_tuned(bundle: Bundle) -> None:
    long = "the cat sat on the mat and looked " * 2
    _, notes = chatted(bundle, [f"{long}\n", f"{long}\n", f"{long}\n", "/tuned\n"])
    assert "the oldest messages no longer fit and were left out" in notes
    assert "nothing tuned was given" in notes


def test_a_question_that_cannot_be_asked_does_not_end_the_chat(bundle: Bundle) -> None:
    lines = ["good?\n", "the cat sat on the mat " * 20 + "\n", "half \udce9\n", "bad?\n"]
    shown, notes = chatted(bundle, lines)
    assert shown == chatted(bundle, ["good?\n", "bad?\n"])[0]
    assert notes.count("error: ") == 2
    assert "a text here at most 128" in notes and "half a character" in notes


def test_answers_as_long_as_a_text_leave_room_for_what_was_said(bundle: Bundle) -> None:
    soon = [option for letter in ascii_letters for option in ("--stop", letter)]
    lines = ["good?\n", "bad?\n"]
    shown, notes = chatted(bundle, lines, *soon, "--max-tokens", 128)
    assert "left out" not in notes
    assert shown == chatted(bundle, lines, *soon, "--max-tokens", 60)[0]


SLOWLY = """
import sys, time
from pathlib import Path
from seedtune.host_tools.cli import main
from seedtune.runtime.engines.cached_text import CachedText
read, log = CachedText.read, Path(sys.argv.pop(1))
def slowly(self, tokens):
    with log.open("a") as file:
        file.write("read\\n")
    time.sleep(0.05)
    return read(self, tokens)
CachedText.read = slowly
main()
"""
"""The command line, where a token takes long enough to be interrupted, and is counted in a file."""


def test_ctrl_c_stops_an_answer_and_the_terminal_is_left_as_it_was(
    bundle: Bundle, tmp_path: Path
) -> None:
    def whole(seed: int) -> int:
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

    def until(reached: Callable[[str], bool]) -> None:
        seen, end = "", time.monotonic() + 120
        while not reached(seen) and time.monotonic() < end:
            if select.select([ours], [], [], 0.05)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        assert reached(seen), seen

    def count() -> int:
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


def test_merged_values_are_those_that_transformers_loads(bundle: Bundle, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuned = tmp_path / "far.safetensors"  # so far that more than rounding changes
    noise = np.random.default_rng(0).standard_normal(bundle.K, np.float32)
    export_values(tuned, bundle.values + np.float32(3) * noise, bundle, step=3)

    source, merged = write_tiny_llama(tmp_path / "hf"), tmp_path / "merged"
    found = good("merge", bundle.path, source, merged, "--values", tuned)
    assert found["changed"] == bundle.K and found["dtype"] == "float32"
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, merged))
    with open_model(bundle) as model:
        model.load(tuned)
        values = model.values
        for layer in bundle.layers:
            own = slice(layer.offset, layer.offset + layer.count)
            weight = other.get_submodule(layer.name).weight
            assert torch.equal(weight.flatten()[bundle.indices[own]], torch.tensor(values[own]))
            weight.data.view(-1)[bundle.indices[own]] = one.get_submodule(
                layer.name
            ).weight.flatten()[bundle.indices[own]]
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
        ), "nothing else may differ"

    task = {"kind": "completion", "template": "{text}", "completion_field": "more"}
    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in CORPUS]
    rows = [{"text": text, "more": more[:12]} for text, more in halves]
    tokenizer = AutoTokenizer.from_pretrained(merged)
    change = -mean_losses(one, tokenizer, rows)
    change += mean_losses(AutoModelForCausalLM.from_pretrained(merged), tokenizer, rows)
    with open_model(bundle, task=task) as model:
        ours = [-model.evaluate([row]).loss for row in rows]
        model.load(tuned)
        ours = [model.evaluate([row]).loss + before for row, before in zip(rows, ours, strict=True)]
    # int4 and int8 lie between the two; what tuning changed is larger.
    assert np.abs(np.array(ours) - change).max() < np.abs(change).max() / 2
    assert np.corrcoef(ours, change)[0, 1] > 0.8


def mean_losses(net: Any, tokenizer: Any, rows: list[dict[str, str]]) -> Any:
    """As transformers computes them, float64 ``[rows]``."""
    import torch

    found = []
    for row in rows:
        tokens = tokenizer(row["text"] + row["more"])["input_ids"]
        ends = tokenizer(row["text"] + row["more"], return_offsets_mapping=True)["offset_mapping"]
        start = next(i for i, (_, end) in enumerate(ends) if end > len(row["text"]))
        with torch.no_grad():
            logp = net(torch.tensor([tokens])).logits.log_softmax(-1)[0]
        picked = [-float(logp[i - 1, tokens[i]]) for i in range(start, len(tokens))]
        found.append(np.mean(picked))
    return np.array(found)


@pytest.fixture(scope="module")
def headed(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Values with a text head that says something else."""
    assert bundle.text_head is not None
    file = tmp_path_factory.mktemp("headed") / "values.safetensors"
    size = bundle.text_head.outputs * bundle.text_head.inputs
    head = np.random.default_rng(1).standard_normal(size, np.float32) / 10
    export_values(file, np.concatenate([bundle.values.astype(np.float32), head]), bundle, step=3)
    return file


@pytest.fixture(scope="module")
def merged(bundle: Bundle, headed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its head."""
    folder = tmp_path_factory.mktemp("merged")
    source = write_tiny_llama(folder / "hf")
    found = good("merge", bundle.path, source, folder / "out", "--values", headed)
    assert found["text_head"] == str(folder / "out" / HEAD_FILE)
    return folder / "out"


def test_a_merged_text_head_is_what_the_program_reads_by(
    bundle: Bundle, headed: Path, merged: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = {"kind": "completion", "template": "{text}", "completion_field": "more"}
    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in CORPUS]
    rows = [{"text": text, "more": more[:12]} for text, more in halves]
    tokenizer = AutoTokenizer.from_pretrained(merged)
    change = mean_losses(load_merged(merged), tokenizer, rows)
    change -= mean_losses(AutoModelForCausalLM.from_pretrained(merged), tokenizer, rows)
    with open_model(bundle, task=task) as model:
        ours = [-model.evaluate([row]).loss for row in rows]
        model.load(headed)
        ours = [model.evaluate([row]).loss + before for row, before in zip(rows, ours, strict=True)]
    assert np.abs(change).max() > 0.1
    # int4 and int8 lie between the two; what the head changes is larger.
    assert np.abs(np.array(ours) - change).max() < np.abs(change).max() / 4


def test_a_merged_text_head_is_added_as_its_file_says(merged: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    adapter = load_file(merged / HEAD_FILE)["adapter"]
    plain, moved = AutoModelForCausalLM.from_pretrained(merged), load_merged(merged)
    tokens = torch.arange(10, 24).reshape(2, 7)
    tapped: list[Any] = []
    for block in plain.model.layers:  # two blocks: 2/3 of the way up and the end are 1 and 2
        block.register_forward_hook(lambda block, given, out: tapped.append(out))
    with torch.no_grad():
        read = plain.model(tokens).last_hidden_state
        states = [x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for x in tapped]
        wanted = plain.lm_head(read + torch.cat(states, -1) @ adapter.T)
        torch.testing.assert_close(moved(tokens).logits, wanted)
        last = moved(tokens, logits_to_keep=1).logits
        torch.testing.assert_close(last, wanted[:, -1:])
        assert not torch.allclose(plain(tokens).logits, wanted, atol=0.1)
        begun = moved(tokens[:, :4], use_cache=True)
        rest = moved(tokens[:, 4:], past_key_values=begun.past_key_values)
        torch.testing.assert_close(rest.logits, wanted[:, 4:])


def test_the_copied_loader_works_by_itself(merged: Path) -> None:
    script = (
        "import torch, load_merged as it, sys\n"
        "assert not any(name.startswith('seedtune') for name in sys.modules)\n"
        "out = it.load_merged('.')(torch.arange(9)[None]).logits\n"
        "print(float(out.double().sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=merged, capture_output=True, text=True, check=True
    )
    import torch

    with torch.no_grad():
        wanted = float(load_merged(merged)(torch.arange(9)[None]).logits.double().sum())
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(wanted, rel=1e-5)


def test_what_the_loader_refuses(merged: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(merged / HEAD_FILE, "pt") as opened:
        metadata, adapter = opened.metadata(), opened.get_tensor("adapter")

    def refused(change: Callable[[Path], object]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(merged, folder)
        change(folder / HEAD_FILE)
        with pytest.raises(ValueError) as raised:
            load_merged(folder)
        assert "\n" not in str(raised.value) and HEAD_FILE in str(raised.value)
        return str(raised.value)

    assert "is missing" in refused(lambda file: file.unlink())
    assert "damaged" in refused(lambda file: file.write_bytes(file.read_bytes()[:-9]))
    assert "SHA-256" in refused(lambda file: save_file({"adapter": adapter + 1}, file, metadata))
    assert "no text head" in refused(lambda file: save_file({"adapter": adapter}, file))
    wide = adapter.new_zeros(adapter.shape[0], 3 * adapter.shape[1] // 2)
    other = {**metadata, "blocks": "[1, 2, 3]", "sha256": content_sha256(wide, [1, 2, 3])}
    assert "of another model" in refused(lambda file: save_file({"adapter": wide}, file, other))


def test_what_merge_refuses(bundle: Bundle, tuned: Path, tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "hf")
    assert "give what to merge" in bad(1, "merge", bundle.path, source, tmp_path / "out")
    taken = bad(8, "merge", bundle.path, source, source, "--values", tuned)
    assert "exists and is not empty" in taken
    from safetensors.torch import load_file, save_file

    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    other = bad(8, "merge", bundle.path, source, tmp_path / "out", "--values", tuned)
    assert "is another model than the one" in other and not (tmp_path / "out").exists()

"""What README.md and docs/ show works as it stands there, on a tiny bundle."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from itertools import cycle
from pathlib import Path

import pytest
import typer
from command_line import call
from compiler import needs_compiler
from doc_pages import (
    ROOT,
    blocks_of,
    commands_of,
    estimators_table,
    names,
    python_of,
    write_files,
)
from seedtune.host_tools.cli import app
from seedtune.host_tools.data.fetch import RESOURCES
from seedtune.runtime.errors import SeedtuneWarning

PAGES = {
    "docs/classification.md": (),
    "docs/multiple_choice.md": (),
    "docs/completion.md": (),
    "docs/runs.md": ("docs/completion.md",),
    "docs/engines.md": ("docs/classification.md",),
    "docs/apps.md": ("docs/classification.md",),
    "docs/serve.md": ("docs/classification.md",),
    "docs/adapters.md": ("docs/completion.md",),
}
"""Each with the pages whose files it uses, too. What the one of the server shows,
``tests/host_tools/test_serve.py`` does."""
PROSE = ("docs/figures.md", "docs/limits.md")
"""Pages without a command."""
ELSEWHERE = ("docs/fleet.md", "docs/install.md", "docs/places.md", "docs/watching.md")
"""Pages whose commands another module runs."""
EVERY_ENGINE = {"docs/engines.md"}
"""Pages about a bundle that all of them run."""
_OWN = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
"""The commands of this environment."""
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


@contextlib.contextmanager
def words_of_many_tokens():
    """The tiny tokenizer has few words, of which the task warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeedtuneWarning)
        yield


def run_block(commands):
    for command in commands:
        result = call(*command.arguments)
        where = f"seedtune {' '.join(command.arguments)}\n{result.output}"
        assert result.exit_code == command.exit_code, where
        found = {names(line) for line in result.output.splitlines() if line.strip()}
        missing = {names(line) for line in command.shown} - found
        assert not missing, f"{missing} not in the output of {where}"


def follow(page, folder, bundle):
    """Do what a page shows, in the working folder ``folder``."""
    for source in (*PAGES[page], page):
        write_files(source, folder)
    link = folder / "model.seedtune"
    link.unlink(missing_ok=True)
    link.symlink_to(bundle.path)
    if not (folder / "MODEL").exists():
        (folder / "MODEL").symlink_to(bundle.path.with_name("hf"))  # what it was made from
    blocks = blocks_of(page)
    assert any(block.language == "python" or list(commands_of(block)) for block in blocks)
    with words_of_many_tokens():
        for block in blocks:
            if block.language == "console":
                run_block(commands_of(block))
            elif block.language == "python":
                # By itself, as an app is: pages speak of threads and of memory.
                command = [sys.executable, "-W", "ignore", "-c", block.text]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One folder for all pages, as somebody has who follows one after another."""
    return tmp_path_factory.mktemp("pages")


@needs_compiler
@pytest.mark.parametrize("page", reversed(PAGES))
def test_pages_work_as_they_stand_without_those_before_them(
    page, shared, bundle, request, monkeypatch
):
    """Backwards: none may need what only another one leaves, nor mind what is there."""
    if page in EVERY_ENGINE:
        bundle = request.getfixturevalue("reach")
    monkeypatch.chdir(shared)
    follow(page, shared, bundle)


@needs_compiler
def test_a_stranger_follows_the_readme_word_by_word(tiny_llama_folder, tmp_path):
    """In a fresh folder, with rows of their own: no step is needed that is not in the text."""
    labels = {"spam": " spam", "ham": " ham", "other": " other"}
    texts = {
        "spam": "WINNER! Txt 8{} now",
        "ham": "home at {}, ok?",
        "other": "film no. {} 'so so'",
    }
    for name, numbers in (("train.tsv", range(60)), ("held_out.tsv", range(60, 84))):
        rows = [
            f"{label}\t{texts[label].format(number)}\n"
            for number, label in zip(numbers, cycle(["spam", "ham", "other", "ham"]))
        ]
        (tmp_path / name).write_text("label\ttext\n" + "".join(rows), encoding="utf-8")
    task = next(block for block in blocks_of("README.md") if block.file == "task.json")
    (tmp_path / "task.json").write_text(
        json.dumps({**json.loads(task.text), "verbalisers": labels})
    )
    said = {}
    place = {"MODEL": str(tiny_llama_folder), ".jsonl": ".tsv"}
    for block in blocks_of("README.md"):
        if block.language not in ("sh", "python"):
            continue
        text = block.text
        for word, own in place.items():
            text = text.replace(word, own)
        in_shell = block.language == "sh"
        for part in text.splitlines() if in_shell else [text]:
            command = part if in_shell else [sys.executable, "-c", part]
            done = subprocess.run(
                command, shell=in_shell, cwd=tmp_path, capture_output=True, text=True, env=_OWN
            )
            assert done.returncode == 0, f"{part}\n{done.stdout}{done.stderr}"
            assert "Traceback" not in done.stderr
            said[part.split()[1] if in_shell else "python"] = done.stdout
    assert json.loads(said["predict"])["answer"] in labels
    assert {*json.loads(said["predict"])["scores"]} == {*labels}
    assert said["python"].splitlines()[-1] in labels
    assert said["generate"].strip() and (tmp_path / "run" / "report.html").is_file()


def understood(arguments):
    """What the command line makes of a command; it refuses what it does not know."""
    name, *rest = arguments
    command = typer.main.get_command(app).commands[name]
    return dict(command.make_context(name, rest).params)


def test_commands_that_no_page_runs_are_understood():
    """Those of models on the hub and of hours."""
    blocks = [block for block in blocks_of("docs/adapters.md") if block.language == "sh"]
    shown = [command for block in blocks for command in commands_of(block)]
    assert shown and all(understood(command.arguments) for command in shown)


def test_the_model_that_a_page_names_can_be_fetched_and_its_commands_exist():
    """Exporting it takes minutes and gigabytes: what can be told without is checked here."""
    (block,) = (one for one in blocks_of("docs/classification.md") if one.language == "sh")
    export, tune = (shlex.split(part)[1:] for part in block.text.strip().split(" && "))
    assert understood(export) and understood(tune)
    assert RESOURCES[export[1]].licence and export[2] == tune[1]


def test_the_condition_that_apps_md_shows_is_one(tmp_path):
    write_files("docs/apps.md", tmp_path)
    script, unit = tmp_path / "idle.sh", "seedtune.service"
    done = subprocess.run(["sh", "-eu", script], capture_output=True, text=True)
    assert not done.stderr and (done.returncode, bool(done.stdout)) in ((0, False), (1, True))
    (block,) = (one for one in blocks_of("docs/apps.md") if one.language == "ini")
    (line,) = (one for one in block.text.splitlines() if one.startswith("ExecStart=seedtune "))
    _, *arguments = shlex.split(line.partition("=")[2])
    assert understood(arguments)["while_"] == f"sh %h/{script.name}"
    if shutil.which("systemd-analyze"):
        own = block.text.replace("ExecStart=seedtune", f"ExecStart={sys.executable}")
        (tmp_path / unit).write_text(own)
        told = subprocess.run(
            ["systemd-analyze", "verify", "--user", tmp_path / unit],
            capture_output=True,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        )
        assert told.returncode == 0 and not told.stderr


def test_the_readme_lists_the_estimators_as_they_describe_themselves():
    assert f"\n\n{estimators_table()}\n\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_example_of_the_package():
    """One example, in the README and where the package explains itself."""
    (example,) = python_of("README.md")
    shown = [line.split("  #")[0] for line in example.splitlines() if line]
    said = (ROOT / "runtime/__init__.py").read_text(encoding="utf-8").split('"""')[1]
    assert shown == [line[4:] for line in said.split("::")[1].splitlines() if line.strip()]


def test_every_page_is_tested_and_linked():
    pages = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
    assert pages == sorted([*PAGES, *PROSE, *ELSEWHERE])
    assert not any(list(commands_of(block)) for page in PROSE for block in blocks_of(page))
    linked = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(pages) <= set(linked)


@pytest.mark.parametrize("page", ["README.md", *PAGES, *PROSE, *ELSEWHERE])
def test_links_lead_somewhere(page):
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900

"""The commands on the way to a bundle, on a tiny model."""

import json
import shutil
from typing import get_type_hints

import pytest
from command_line import bad, call, good
from seedtune.export import export as exporting
from seedtune.export.lower import lower as lowering
from seedtune.export.model import load_model as loading
from seedtune.export.profile.profile_file import load_profile
from seedtune.export.text import make_terms
from seedtune.host_tools.commands import export as commands
from seedtune.runtime.bundle import DEFAULT_BOUNDS, WordsPlace, open_bundle
from tiny_bundle import TASK
from tiny_model import CORPUS, write_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(f"{n} {line}" for n in range(20) for line in CORPUS))
    return file


def write_task(file, **changes):
    file.write_text(json.dumps(TASK | changes))
    return file


@pytest.fixture(scope="module")
def profile(tmp_path_factory, model, text):
    file = tmp_path_factory.mktemp("profile") / "p.safetensors"
    good("profile", model, file, "--text", text, "--sequences", 2, "--length", 8)
    return file


def test_a_profile_is_a_file_of_every_weight(tmp_path, model, text):
    file = tmp_path / "p.safetensors"
    found = good("profile", model, file, "--text", text, "--sequences", 4, "--length", 16)
    kept = load_profile(file)
    assert found["profile"] == str(file)
    assert (found["weights"], found["text_sha256"]) == (kept.entries, kept.text_sha256)
    assert kept.settings["tokens"] == 64
    assert 10**8 < found["peak_rss_bytes"] < 10**11


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--dtype", "int4"], 1, "dtype 'int4'"),
        (["--sequences", 0], 2, "--sequences"),
        (["--sequences", 999], 3, "too little text"),
    ],
)
def test_bad_options_of_profile(tmp_path, model, text, options, code, message):
    file = tmp_path / "p.safetensors"
    result = call("profile", model, file, "--text", text, "--length", 16, *options, "--json")
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert not file.exists()  # a wrong option is refused before minutes of work


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--fraction", 1.5], 2, "1.5 must lie above 0"),
        (["--mask", "best"], 8, "unknown mask 'best'"),
        (["--to", "gguf"], 8, "gguf"),
        (["--threads", 0], 2, "--threads"),
    ],
)
def test_bad_options_of_export(tmp_path, model, monkeypatch, options, code, message):
    monkeypatch.setattr(loading, "load_causal_lm", never)
    result = call("export", model, tmp_path / "b", *options, "--json")
    assert result.exit_code == code, result.output
    assert message in result.stderr


def test_estimate(model):
    found = good("estimate", model, "--gflops", 50, "--rows", 4, "--length", 32)
    assert found["gflops"] == 50
    assert list(found["stages"]) == [
        "profile",
        "export",
        "bundle",
        "tuning",
        "writing",
    ]
    for stage in found["stages"].values():
        assert stage["bytes"] == sum(stage["components"].values()) > 0
    longer = good("estimate", model, "--gflops", 50, "--rows", 4, "--length", 64)
    assert longer["stages"]["tuning"]["bytes"] > found["stages"]["tuning"]["bytes"]
    slower = good("estimate", model, "--gflops", 5, "--rows", 4, "--length", 32)
    ratio = slower["stages"]["tuning"]["seconds"] / found["stages"]["tuning"]["seconds"]
    assert ratio == pytest.approx(10)
    assert "tuning" in call("estimate", model, "--gflops", 50).stdout


@pytest.mark.parametrize(
    ("fields", "message", "work"),
    [
        ({"kind": "clasification"}, "'clasification' is unknown", (loading, "load_causal_lm")),
        (
            {"template": "{text}" + " a long template" * 9},
            "shorten them or export",
            (exporting, "export_model"),
        ),
    ],
)
def test_bad_tasks_are_refused_before_the_work(tmp_path, model, monkeypatch, fields, message, work):
    monkeypatch.setattr(*work, never)
    file = write_task(tmp_path / "task.json", **fields)
    arguments = ("export", model, tmp_path / "out.seedtune", "--task", file, "--length", 32)
    assert message in bad(3, *arguments)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.fixture
def not_lowered(monkeypatch):
    """What is not about the program takes a second, not a minute."""
    monkeypatch.setattr(
        lowering, "lower", lambda program, traces, file, *_: file.write_bytes(bytes(1 << 20))
    )
    monkeypatch.setattr(exporting, "find_words", lambda file, *words: WordsPlace(file.name, 0, 0))
    monkeypatch.setattr(make_terms, "placed_bytes", lambda wanted, file, *rest: 0)


@pytest.mark.usefixtures("not_lowered")
def test_export_profiles_by_itself_and_keeps_it(tmp_path, model, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n} {line}" for n in range(600) for line in CORPUS))
    arguments = ("export", model, tmp_path / "b", "--text", text, "--fraction", 0.01,
                 "--length", 16, "--rounding", "nearest", "--mask", "magnitude")  # fmt: skip
    first = call(*arguments)
    assert first.exit_code == 0, first.output
    assert "profile" in first.stderr.split()
    assert open_bundle(tmp_path / "b").manifest["mask"]["method"] == "magnitude"
    second = call(*arguments)
    assert second.exit_code == 0 and "profile" not in second.stderr.split()


def never(*_, **__):
    raise AssertionError("the work has begun")


def test_targets_that_are_something_else_are_refused_before_the_export(
    tmp_path, model, profile, text, monkeypatch
):
    monkeypatch.setattr(loading, "load_causal_lm", never)
    other = tmp_path / "other.seedtune"
    other.mkdir()
    assert "exists and is not a bundle" in bad(4, "export", model, model, "--profile", profile)
    assert "exists and is not a bundle" in bad(4, "export", model, profile)
    assert "is a folder" in bad(1, "export", model, other)
    assert "no such folder" in bad(1, "export", model, tmp_path / "a" / "b")


@pytest.mark.usefixtures("not_lowered")
def test_export_to_one_file_beside_a_model_of_that_name(tmp_path, model, text):
    shutil.copytree(model, tmp_path / "tiny")
    profile, bundle = tmp_path / "p.safetensors", tmp_path / "tiny.seedtune"
    good("profile", tmp_path / "tiny", profile, "--text", text, "--sequences", 2, "--length", 8)
    before = sorted(path.name for path in tmp_path.iterdir())
    options = ("--fraction", 0.01, "--length", 16, "--text", text)
    task = write_task(text.parent / "task.json")
    found = good("export", tmp_path / "tiny", bundle, "--profile", profile, *options, "--task",
                 task)  # fmt: skip
    opened = open_bundle(bundle, cache=tmp_path / "cache")
    assert opened.K == found["values"] > 0 and 10**8 < found["peak_rss_bytes"] < 10**11
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == sorted(
        [*before, bundle.name]
    )


def test_bounds_that_are_not_given_are_the_default_that_the_help_says():
    hints = get_type_hints(commands.export, include_extras=True)
    for name in ("probes", "rows", "length", "candidates"):
        said = hints[name].__metadata__[0].help
        assert said.endswith(f"Default: {getattr(DEFAULT_BOUNDS, name)}.")
    assert DEFAULT_BOUNDS.positions == DEFAULT_BOUNDS.length

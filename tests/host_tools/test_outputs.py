"""What a command writes goes over nothing that it reads, and is refused in one line otherwise."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import bad, call, good, write_rows
from exported_bundle import export_tiny_bundle
from faults import small_disk
from seedtune.export.merge import merge_values
from seedtune.host_tools.commands.inputs import memory_bytes
from seedtune.runtime import engines
from seedtune.runtime.bundle import open_bundle, write
from seedtune.runtime.errors import BundleError, ModelError, SeedtuneError, TuningError
from seedtune.runtime.files import place_folder
from tiny_bundle import write_tiny_bundle
from tiny_model import write_tiny_llama
from value_engine import ValueEngine


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: ValueEngine(), raising=False)
    return write_tiny_bundle(tmp_path / "bundle").path


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", range(40))


@pytest.fixture
def run(tmp_path, bundle, rows):
    good("tune", bundle, tmp_path / "run", "--train", rows, "--data", rows, "--steps", 4,
         "--batch-size", 8, "--estimator", "two-point", "--eps", 0.01, "--lr", 0.01)  # fmt: skip
    return tmp_path / "run"


@pytest.fixture(scope="module")
def exported(exported_folder):
    return export_tiny_bundle(exported_folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("hf") / "hf")


def content(folder):
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_no_output_goes_over_a_file_of_the_run_or_the_bundle(tmp_path, run, bundle):
    (tmp_path / "link").symlink_to(run / "journal.bin")
    before = content(tmp_path)
    own = [run / name for name in ("journal.bin", "journal.lock", "metrics.jsonl", "outcome.json")]
    commands: list[Callable[[Path], tuple[object, ...]]] = [
        lambda file: ("journal", "export", run, bundle, file),
        lambda file: ("journal", "share", run, bundle, file),
        lambda file: ("report", run, "-o", file),
    ]
    for command in commands:
        for file in (*own, tmp_path / "link", run / ".." / "run" / "journal.bin"):
            assert "which is read; name another" in bad(1, *command(file))
    for file in (bundle / "manifest.json", bundle / "values.safetensors", bundle / "new"):
        assert "which is read" in bad(1, "pack", bundle, file)
        assert "which is read" in bad(1, "journal", "export", run, bundle, file)
    assert "which is read" in bad(1, "journal", "export", run / "journal.bin", bundle,
                                  run / "journal.bin")  # fmt: skip
    assert content(tmp_path) == before
    good("journal", "export", run, bundle, run / "values.safetensors")
    good("journal", "export", run, bundle, run / "mine.safetensors")
    good("report", run, "-o", run / "page.html")


def test_a_run_does_not_lie_in_the_bundle(bundle, rows):
    assert "which is read" in bad(1, "tune", bundle, bundle / "run", "--train", rows)
    open_bundle(bundle)


def test_outputs_that_are_no_name_are_one_line(run, bundle, exported, source, monkeypatch):
    empty = run.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for name in (".", "/", ".."):
        for command in (
            ("journal", "export", run, bundle, name),
            ("journal", "share", run, bundle, name),
            ("report", run, "-o", name),
            ("pack", bundle, name),
            ("merge", exported.path, source, name, "--values", exported.path),
        ):
            told = call(*command, "--json")
            assert told.exit_code in (1, 4, 5, 8), told.output
            assert isinstance(told.exception, SystemExit) and told.stdout == ""
            assert len([x for x in told.stderr.splitlines() if x.startswith("error: ")]) == 1


def test_merging_takes_an_empty_folder_and_nothing_else(tmp_path, exported, source):
    def merge(folder):
        merge_values(exported, exported.values.astype("float32"), source, folder)

    (tmp_path / "there").mkdir()
    for kind in ("link", "dangling"):
        (tmp_path / kind).symlink_to(tmp_path / ("there" if kind == "link" else "nowhere"))
        with pytest.raises(ModelError, match=f"{kind}: exists"):
            merge(tmp_path / kind)
        assert (tmp_path / kind).is_symlink()
    for folder in (source / "out", exported.path / "out", source):
        with pytest.raises(SeedtuneError, match="which is read"):
            merge(folder)
    merge(tmp_path / "there")
    assert (tmp_path / "there" / "model.safetensors").exists()


def test_what_came_into_a_folder_meanwhile_stays(tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        place_folder(tmp_path / "new", tmp_path / "there")
    assert (tmp_path / "there" / "mine").read_text() == "mine"
    notes = write_tiny_bundle(tmp_path / "b").path / "notes.txt"
    monkeypatch.setattr(write, "sync_tree", lambda folder: notes.write_text("mine"))
    with pytest.raises(BundleError, match=r"notes\.txt: is no part of the bundle there"):
        write_tiny_bundle(tmp_path / "b", program=b"new")
    assert notes.read_text() == "mine"


def test_a_bundle_takes_the_place_of_a_bundle_alone(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    write_tiny_bundle(tmp_path / "b", program=b"new")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt: is no part of the bundle there"):
        write_tiny_bundle(tmp_path / "b", program=b"newer")
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"
    os.unlink(tmp_path / "b" / "notes.txt")
    (tmp_path / "link").symlink_to(bundle.path)
    with pytest.raises(BundleError, match="link: exists and is not a bundle"):
        write_tiny_bundle(tmp_path / "link")


@pytest.mark.parametrize("room", ["none", "for the weights", "for all but the last file"])
def test_merging_onto_a_full_disk_is_one_line(tmp_path, exported, source, room):
    merge_values(exported, exported.values.astype("float32"), source, tmp_path / "whole")
    pages = {file.name: -(-file.stat().st_size >> 12) for file in (tmp_path / "whole").iterdir()}
    size = {
        "none": 1,
        "for the weights": 1 + pages["model.safetensors"],
        "for all but the last file": sum(pages.values()) - 1,
    }[room]
    with small_disk(tmp_path / "disk", size << 12) as disk:
        with pytest.raises(ModelError, match=r"out: cannot be written: .*No space left"):
            merge_values(exported, exported.values.astype("float32"), source, disk / "out")
        assert not list(disk.iterdir())


@pytest.mark.parametrize("size", ["9" * 400, "1e9", "-1", "0", "many", "9" * 5000 + "GB"])
def test_a_memory_limit_that_is_no_size(size):
    with pytest.raises(TuningError, match="must be a size such as 300MB"):
        memory_bytes(size)

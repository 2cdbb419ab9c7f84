"""Directions learned in a child process: kept by content, errors passed on."""

from pathlib import Path

import pytest
from seedtune.host_tools.data.sentences import load_sentences
from seedtune.host_tools.prepare import task_bundle as module
from seedtune.host_tools.prepare.task_bundle import task_bundle
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.errors import DataError, ModelError, SeedtuneError
from tiny_bundle import TASK, write_tiny_bundle


@pytest.mark.slow
def test_learned_once_and_again_when_damaged(
    bundle: Bundle, exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    plain = module.run_in_child

    def counted(*arguments, **more):
        runs.append(arguments)
        return plain(*arguments, **more)

    monkeypatch.setattr(module, "run_in_child", counted)
    stages = set()
    model = str(exported_folder / "hf")
    made = task_bundle(
        model, bundle, TASK, tmp_path, directions=3, progress=lambda *now: stages.add(now[0])
    )
    assert made.basis is not None and made.basis.size == 3
    assert made.task == TASK
    assert stages == {"load", "directions"}
    assert task_bundle(model, bundle, TASK, tmp_path, directions=3).sha256 == made.sha256
    assert len(runs) == 1
    (made.path / "basis.safetensors").write_bytes(b"")
    assert task_bundle(model, bundle, TASK, tmp_path, directions=3).sha256 == made.sha256
    assert len(runs) == 2
    fewer = task_bundle(model, bundle, TASK, tmp_path, directions=2)
    assert fewer.basis is not None and fewer.basis.size == 2
    assert len(runs) == 3


def test_without_directions_no_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> int:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(module, "run_in_child", never)
    plain = write_tiny_bundle(tmp_path / "plain", task=None, hidden_blocks=[1, 2])
    made = task_bundle("nowhere", plain, TASK, tmp_path / "out", directions=0)
    assert made.task == TASK and made.basis is None
    assert made.hidden_width == plain.hidden_width
    again = task_bundle("nowhere", plain, TASK, tmp_path / "out", directions=0)
    assert (again.path, again.sha256) == (made.path, made.sha256)


def test_an_error_of_the_child_is_raised_here(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        task_bundle(str(tmp_path / "nowhere"), bundle, TASK, tmp_path / "out", directions=2)
    assert not (tmp_path / "out" / "bundle").exists()


def test_sentences(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("A first sentence of some length. Short. And is this a second one? Yes!\n\nno")
    assert load_sentences(file) == [
        "A first sentence of some length.",
        "And is this a second one?",
    ]
    file.write_text("too short\n\nto use")
    with pytest.raises(DataError, match=r"t\.txt: holds no sentence of 20 to 300 characters"):
        load_sentences(file)


def test_an_old_bundle_is_not_taken_for_one_whose_making_was_killed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    note = tmp_path / "made-from"
    note.write_text("an older key")
    monkeypatch.setattr(module, "run_in_child", lambda *arguments, **more: -9)
    with pytest.raises(SeedtuneError, match=r"ended early \(exit code -9\)"):
        task_bundle("model", bundle, TASK, tmp_path, directions=2)
    assert not note.exists()


@pytest.mark.parametrize("name", ["sentences.py", "calibration.py"])
def test_the_key_follows_the_code_that_chooses_the_texts(
    bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = module._key(bundle, TASK, 16)
    plain = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: plain(path) + (b"#" if path.name == name else b"")
    )
    assert module._key(bundle, TASK, 16) != before

"""A bundle with another task: kept by content, made again when damaged."""

from pathlib import Path

import pytest
from seedtune.host_tools.prepare import task_bundle as module
from seedtune.host_tools.prepare.task_bundle import task_bundle
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.errors import BundleError
from tiny_bundle import TASK, write_tiny_bundle

OTHER = {**TASK, "template": "{text} So it was"}


def never(*_: object) -> Bundle:
    raise AssertionError("written again")


def test_written_once_and_again_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", task=None, hidden_blocks=[1, 2])
    made = task_bundle(plain, TASK, tmp_path / "out")
    assert made.task == TASK and made.hidden_width == plain.hidden_width
    with monkeypatch.context() as patched:
        patched.setattr(module, "with_task", never)
        again = task_bundle(plain, TASK, tmp_path / "out")
    assert (again.path, again.sha256) == (made.path, made.sha256)
    (made.path / "values.safetensors").write_bytes(b"")
    assert task_bundle(plain, TASK, tmp_path / "out").sha256 == made.sha256
    assert task_bundle(plain, OTHER, tmp_path / "out").task == OTHER


def test_an_old_bundle_is_not_taken_for_one_whose_writing_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", task=None)
    task_bundle(plain, TASK, tmp_path / "out")

    def fails(*_: object) -> Bundle:
        raise BundleError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(module, "with_task", fails)
        with pytest.raises(BundleError, match="no space left"):
            task_bundle(plain, OTHER, tmp_path / "out")
    assert not (tmp_path / "out" / "made-from").exists()
    assert task_bundle(plain, TASK, tmp_path / "out").task == TASK

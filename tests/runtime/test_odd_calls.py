"""What an app may hand over by mistake: refused in one line, never learned from."""

from pathlib import Path
from typing import Any

import pytest
from fakes import fake_examples
from seedtune.runtime import open_model
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.errors import BundleError, DataError, JournalError
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import rewind
from seedtune.runtime.model import Model
from seedtune.runtime.scoring.evaluation import evaluate
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import read_rows
from tiny_bundle import TASK, write_tiny_bundle
from tiny_run import ENGINE, START, tuner
from tiny_run import TASK as FAKE_TASK

ROWS = [{"text": "the film was great", "label": "1"}, {"text": "a dull plot", "label": "0"}]
LONG = "x" * 300


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return open_model(write_tiny_bundle(tmp_path / "bundle"))


def test_rows_encoded_for_prediction_are_not_learned_from(tmp_path: Path) -> None:
    """Their label would be that of index -1, the last."""
    examples = fake_examples(8)
    for example in examples[3:]:
        object.__setattr__(example, "gold", -1)
    with pytest.raises(DataError, match=r"^training example 4: has no label"):
        tuner(tmp_path / "a", train=examples)
    with pytest.raises(DataError, match=r"^held-out example 4: has no label"):
        tuner(tmp_path / "b", eval_examples=examples)
    with pytest.raises(DataError, match=r"^example 4: has no label"):
        evaluate(ENGINE, FAKE_TASK, examples, Values(START.values), START.bounds)
    assert not list(tmp_path.iterdir())


def test_they_are_known_by_how_they_were_encoded(model: Model) -> None:
    assert {example.gold for example in model.encode(ROWS, labelled=False)} == {-1}


@pytest.mark.parametrize("rows", [None, 5])
def test_what_holds_no_rows_is_refused(tmp_path: Path, model: Model, rows: Any) -> None:
    with pytest.raises(DataError, match=r"^rows must be a list of dicts or a file, not"):
        model.tuner(tmp_path / "run", rows)


@pytest.mark.parametrize("task", [5, [], {"kind": "x"}, {**TASK, "template": 5}])
def test_a_task_that_is_none_is_refused_at_once(tmp_path: Path, task: Any) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    with pytest.raises(DataError, match=r"^task: "):
        open_model(bundle, task=task)


def test_names_that_the_file_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        open_bundle(tmp_path / LONG)
    with pytest.raises(JournalError, match="cannot be made"):
        tuner(tmp_path / LONG)
    with pytest.raises(JournalError, match="cannot be read"):
        read_journal(tmp_path / LONG)
    with pytest.raises(JournalError, match="no such journal"):
        rewind(tmp_path / LONG, 1)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / f"{LONG}.jsonl")


def test_the_package_shows_its_api_and_not_what_it_imports() -> None:
    import seedtune.runtime as package

    assert set(dir(package)) == set(package.__all__)
    assert {"open_model", "Model", "Tuner", "Settings", "Budget", "Control"} <= set(dir(package))
    for name in dir(package):
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'numpy'"):
        _ = package.numpy

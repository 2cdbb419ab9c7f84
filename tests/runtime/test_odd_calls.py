"""What an app may hand over by mistake: refused in one line, never learned from."""

import pytest
from fakes import fake_examples
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.errors import BundleError, DataError, JournalError
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.operations import rewind
from seedtune.runtime.scoring.evaluation import evaluate
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tasks import read_rows
from tiny_run import ENGINE, START, tuner
from tiny_run import TASK as FAKE_TASK

LONG = "x" * 300


def test_rows_encoded_for_prediction_are_not_learned_from(tmp_path):
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


def test_names_that_the_file_system_refuses(tmp_path):
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


def test_the_package_shows_its_api_and_not_what_it_imports():
    import seedtune.runtime as package

    assert set(dir(package)) == set(package.__all__)
    assert {"open_model", "Model", "Tuner", "Settings", "Budget", "Control"} <= set(dir(package))
    for name in dir(package):
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'numpy'"):
        _ = package.numpy

"""Fixtures that several modules share."""

import pytest
from tiny_run import run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The run of ``tiny_run``, uninterrupted: its folder and the hash of its final values."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder)

"""Fixtures that several modules share."""

from pathlib import Path

import pytest
from tiny_run import run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of ``tiny_run``, uninterrupted: its folder and the hash of its final values."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder)

"""What the tests of the phone share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from jvm_scripts import DEMO, run_script

sys.path.insert(0, str(DEMO))


@pytest.fixture(scope="session")
def on_jvm():
    """Skips where the packages cannot be had, and says why."""
    from rehearsal import jvm, shim
    from rehearsal.downloads import RehearsalError
    from seedtune.runtime.errors import DownloadError

    try:
        jvm.classpath()
        shim.library_folder("x86_64")
    except (DownloadError, RehearsalError) as error:
        pytest.skip(str(error))
    return run_script

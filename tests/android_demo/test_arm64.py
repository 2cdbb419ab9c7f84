"""The library that arm64 phones run, under qemu: killed, resumed, replayed on this machine."""

import json
import platform
from pathlib import Path

import pytest
from arm64_guest import java_folder, run_with_java
from jvm_scripts import OnJvm
from seedtune.host_tools.emulate.guest import Guest
from seedtune.host_tools.emulate.host import USER_MODE, EmulatorError, missing_packages
from seedtune.runtime.bundle import Bundle, open_bundle
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start

MISSING = missing_packages(USER_MODE)
pytestmark = [
    pytest.mark.android,
    pytest.mark.emulator,
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}"),
    pytest.mark.skipif(platform.system() != "Linux", reason="qemu's user mode needs Linux"),
]
SCRIPT = Path(__file__).with_name("arm64_run.py")
STEPS, KILL = 6, 3


@pytest.fixture(scope="module")
def guest(on_jvm: OnJvm) -> Guest:
    from rehearsal.shim import library_folder

    library_folder("arm64")
    try:
        java_folder()
    except EmulatorError as error:
        pytest.skip(str(error))
    return Guest()


def tuned(guest: Guest, bundle: Bundle, folder: Path) -> None:
    arguments = [SCRIPT, bundle.path, folder, str(STEPS)]
    run_with_java(guest, *arguments, str(KILL), killed=True)
    start = Start.of(bundle)
    assert replay(folder, start).history.steps == KILL
    found = json.loads(run_with_java(guest, *arguments).strip().splitlines()[-1])
    assert found["machine"] == "aarch64" and found["first"] == KILL
    whole = replay(folder, start)
    assert whole.history.steps == STEPS
    assert whole.sha256 == found["sha256"]
    assert (whole.values != start.values).any()


def test_a_run_of_the_phones_library_replays_here(
    guest: Guest, bundle: Bundle, tmp_path: Path
) -> None:
    tuned(guest, bundle, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_smollm2_too(guest: Guest, tmp_path: Path) -> None:
    from seedtune.host_tools.data.fetch import fetch
    from seedtune.host_tools.prepare.prepare import prepare

    path = prepare(str(fetch("smollm2-135m"))).bundle.path
    tuned(guest, open_bundle(path), tmp_path / "run")

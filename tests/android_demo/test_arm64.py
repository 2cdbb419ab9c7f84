"""The library that arm64 phones run, under qemu: killed, resumed, replayed on this machine."""

import json
import platform
from pathlib import Path

import pytest
from arm64_java import java_folder
from jvm_scripts import DEMO
from seedtune.host_tools.emulate.host import EmulatorError, missing_packages
from seedtune.host_tools.emulate.machine import PYTHON_PATH, Machine
from seedtune.runtime.files import default_cache
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay

MISSING = missing_packages()
pytestmark = [
    pytest.mark.android,
    pytest.mark.emulator,
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}"),
    pytest.mark.skipif(platform.system() != "Linux", reason="the emulator needs Linux"),
]
SCRIPT = Path(__file__).with_name("arm64_run.py")
STEPS, KILL = 4, 2


def test_a_run_of_the_phones_library_replays_here(on_jvm, bundle, tmp_path):
    from rehearsal.shim import library_folder

    try:
        java = java_folder()
    except EmulatorError as error:
        pytest.skip(str(error))
    libraries = f"/cache/android/{library_folder('arm64').name}"
    variables = (
        f"LD_PRELOAD={libraries}/pad.so JAVA_HOME=/java/jvm "
        "PYTHONPATH=/packages:/demo:/java/python:/tests"
    )
    run = f"env {variables} {PYTHON_PATH} /tests/{SCRIPT.name} /bundle /share/run {STEPS}"
    done = Machine().run(
        ["sh", "-c", f"{run} {KILL}; echo $? > /share/killed; {run} > /share/told"],
        reads={
            "/bundle": bundle.path,
            "/cache/android": default_cache() / "android",
            "/demo": DEMO,
            "/java": java,
            "/tests": SCRIPT.parent,
        },
        writes={"/share": tmp_path},
        timeout=1500,
    )
    assert done.status == 0, done.console
    assert (tmp_path / "killed").read_text() == "137\n"
    found = json.loads((tmp_path / "told").read_text().splitlines()[-1])
    assert found["machine"] == "aarch64" and found["first"] == KILL
    start = Start.of(bundle)
    whole = replay(tmp_path / "run", start)
    assert whole.history.steps == STEPS
    assert whole.sha256 == found["sha256"]
    assert (whole.values != start.values).any()

"""``kill -9`` at random moments on really exported programs: resumed runs end on the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import smollm2
from seedtune.runtime.estimators import ESTIMATORS
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import replay


@pytest.mark.timeout(1500)
def test_kills_of_the_tiny_model_under_every_estimator(bundle):
    """SEEDTUNE_KILLS sets how many; ``kill_run.py`` runs more by itself."""
    wanted = int(os.environ.get("SEEDTUNE_KILLS", "100"))
    script = Path(__file__).with_name("kill_run.py")
    done = subprocess.run(
        [sys.executable, str(script), "--bundle", str(bundle.path), "--kills", str(wanted)],
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["estimator"] for each in found] == list(ESTIMATORS)
    assert sum(each["kills"] for each in found) >= wanted
    assert all(each["equal"] == each["runs"] > 0 for each in found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_smollm2(tmp_path):
    from seedtune.host_tools.data.named_tasks import load_task

    bundle = smollm2.whole()
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in load_task("sst2").test[:8]))
    command = [
        *(str(Path(sys.executable).with_name("seedtune")), "tune", str(bundle.path)),
        *("--task", "sst2", "--data", str(held_out), "--steps", "12", "--batch-size", "4"),
        *("--eval-every", "6"),
    ]

    def start(folder):
        arguments = [*command[:3], str(folder), *command[3:]]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    began = time.monotonic()
    process = start(tmp_path / "whole")
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    lasted = time.monotonic() - began
    start_values = Start.of(bundle)
    whole = replay(tmp_path / "whole", start_values)
    rng = random.Random(1)
    for number in range(3):
        folder = tmp_path / f"run{number}"
        process = start(folder)
        time.sleep(lasted * (0.3 + 0.6 * rng.random()))  # past the start-up
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start(folder)
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert replay(folder, start_values).sha256 == whole.sha256

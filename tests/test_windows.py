"""The pure Python part passes its own tests with what Windows lacks gone; see ``like_windows``.

Imports of all modules and the lock between processes are in ``runtime/test_run_lock.py``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = (
    "budget", "bundle", "data", "estimators", "guards", "metrics", "per_example",
    "replay", "share", "tasks", "values_file",
)  # fmt: skip
LEFT_OUT = (
    # For the time that they take.
    "twenty_thousand", "on_damage_fails_with", "unbiased_on_a_quadratic",
    "keeps_values_and_state", "flipped_bit",
    # They replace a file that is open, and send signals that only other systems have.
    "what_was_checked_stays_open", "signals_pause_and_continue",
)  # fmt: skip


def test_bundle_journal_tasks_and_estimators_pass_their_tests():
    files = [str(HERE / "runtime" / f"test_{name}.py") for name in FILES]
    plugins = ("-p", "like_windows", "-p", "no:timeout", "-p", "no:cacheprovider")
    chosen = ("-k", " and ".join(f"not {name}" for name in LEFT_OUT), *files)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *plugins, *chosen],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(passed[1]) > 400

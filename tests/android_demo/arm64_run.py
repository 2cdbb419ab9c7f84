"""``arm64_run.py BUNDLE FOLDER STEPS [KILL]``: tune over the phone's library, die after KILL."""

import json
import os
import platform
import signal
import sys
import traceback

from engine_run import ROWS, TASK
from rehearsal import jvm

if __name__ == "__main__":
    jvm.start()
    try:
        from seedtune.runtime import open_model

        bundle, folder, steps, *kill = sys.argv[1:]
        with (
            open_model(bundle, engine="executorch-java", threads=1, task=TASK) as model,
            model.tuner(
                folder,
                ROWS,
                estimator="per-example",
                steps=int(steps),
                batch_size=4,
            ) as tuner,
        ):
            first = tuner.history.steps
            for report in tuner:
                print(f"step {report.step}: {report.seconds:.1f} s", file=sys.stderr, flush=True)
                if kill and report.step == int(kill[0]):
                    os.kill(os.getpid(), signal.SIGKILL)
            found = {"machine": platform.machine(), "sha256": tuner.values.sha256}
            print(json.dumps({**found, "first": first}))
        jvm.leave()
    except BaseException:
        traceback.print_exc()
        jvm.leave(1)

"""``seedtune bench journal``: size and replay time of a run, time of the noise for a 7B model."""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.estimators import settings_of
from seedtune.runtime.estimators.noise import add_noise
from seedtune.runtime.journal.format import Evaluation, Header, Step
from seedtune.runtime.journal.replay import replay
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.tuning.live_run import LiveRun


def bench_journal(
    *, entries: int = 106_000, steps: int = 20_000, large: int = 6_700_000
) -> dict[str, Any]:
    """Record ``steps`` two-point steps as the loop does, replay them, and time the noise.

    Args:
        entries: K of the run: the sensitive values of SmolLM2-135M.
        large: K of the noise timing: the sensitive values of a 7B model.

    Returns:
        ``bytes_20000_steps`` (header, an evaluation each 100 steps and end included),
        ``replay_seconds``, ``replay_equal`` (same hash as live), ``noise_ms_per_probe`` (generation
        and update, one core, median of 11).
    """
    rng = np.random.default_rng(0)
    start = Start(
        rng.standard_normal(entries).astype(np.float32), "0" * 64, Bounds(2, 16, 64, 16, 2)
    )
    header = Header(
        bundle_sha256=start.bundle_sha256,
        values_sha256=Values(start.values).sha256,
        entries=entries,
        scalar_count=1,
        settings=settings_of(
            {
                "steps": steps,
                "eval_every": 100,
                "estimator": "two-point",
                "eps": 1e-2,
                "schedule": "cosine",
            }
        ).to_dict(),
        train_sha256="0" * 64,
        eval_sha256="0" * 64,
        metric={"name": "accuracy", "higher_is_better": True},
    )
    with tempfile.TemporaryDirectory() as folder:
        run = LiveRun.begin(Path(folder), header, start, None)
        began = time.perf_counter()
        for step, scalar in enumerate(rng.normal(0, 20, steps).astype(np.float16)):
            if step % 100 == 0:
                run.commit(Evaluation(1.0 + step, 0.5))  # never better: no copies of the best
            run.commit(Step((float(scalar),)))
        run.end("benchmark")
        live_seconds = time.perf_counter() - began
        live = run.values.sha256
        run.close()
        size = run.writer.path.stat().st_size
        began = time.perf_counter()
        again = replay(folder, start)
        replay_seconds = time.perf_counter() - began
    values = np.zeros(large, dtype=np.float32)
    moments = [time.perf_counter()]
    for step in range(11):
        add_noise(values, 1e-3, seed=1, step=step)
        moments.append(time.perf_counter())
    return {
        "bytes_20000_steps": size,
        "replay_seconds": replay_seconds,
        "replay_equal": again.sha256 == live,
        "noise_ms_per_probe": 1e3 * float(np.median([b - a for a, b in pairwise(moments)])),
        "steps": steps,
        "entries": entries,
        "noise_entries": large,
        "record_and_update_us_per_step": 1e6 * live_seconds / steps,
    }

"""What the emulated device does: tune, be killed, resume, write. Runs with the runtime alone.

``python tune_on_device.py BUNDLE FOLDER`` reads ``FOLDER/job.json`` (see ``rehearsal.Job``) and
``FOLDER/rows.jsonl``, leaves the run in ``FOLDER/run`` and writes ``FOLDER/result.json``. The
parent watches: it holds nothing but the standard library, so that each session is a fresh process.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seedtune.runtime.model import Model

_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1
_WAITING = "waiting"
"""File that says that the first session waits to be killed."""


def open_short(bundle_path: Path, task: Mapping[str, Any], length: int) -> Model:
    """The bundle with ``task``, texts shortened to ``length`` tokens; one thread."""
    from dataclasses import replace

    from seedtune.runtime import open_model
    from seedtune.runtime.bundle import open_bundle

    bundle = open_bundle(bundle_path)
    short = replace(bundle, bounds=replace(bundle.bounds, length=length))
    return open_model(short, task=task, on_long="truncate", threads=1)


def tune(
    bundle_path: Path, folder: Path, job: dict[str, Any], wait_after: int | None
) -> dict[str, Any]:
    """One session in this process: start or resume the run and go on to its end.

    Args:
        wait_after: step after which to wait for the kill instead; small models would otherwise
            be done before it comes.
    """
    began = time.monotonic()
    from seedtune.runtime.engines.memory import peak_resident_bytes

    with (
        open_short(bundle_path, job["task"], job["length"]) as model,
        model.tuner(folder / "run", folder / "rows.jsonl", **job["settings"]) as tuner,
    ):
        resumed_at = tuner.history.steps
        start_seconds = time.monotonic() - began
        for report in tuner:
            print(f"step {report.step}: loss {report.loss:.4f}, {report.seconds:.1f} s", flush=True)
            if report.step == wait_after:
                (folder / _WAITING).touch()
                while True:
                    signal.pause()
        return {
            "resumed_at_step": resumed_at,
            "start_seconds": start_seconds,
            "values_sha256": tuner.values.sha256,
            "peak_rss_bytes": peak_resident_bytes(),
            "architecture": platform.machine(),
            "torch": "torch" in sys.modules,
        }


def write(bundle_path: Path, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Open the tuned model, as an app does after a restart, and let it go on from the prompt."""
    began = time.monotonic()
    from seedtune.runtime.engines.memory import peak_resident_bytes
    from seedtune.runtime.writing import Manner

    with open_short(bundle_path, job["task"], job["length"]) as model:
        model.load(folder / "run")
        writing = model.writer().write(job["prompt"], Manner(job["max_tokens"]))
        opened = time.monotonic()
        text, first, shown = "", None, 0
        for piece in writing:
            text += piece
            if first is None:
                first, shown = time.monotonic(), len(writing.tokens)
        last = time.monotonic()
        # Each token is read for the next one's sake, and the one that ends the text is none of it.
        later = len(writing.tokens) - shown + (writing.ended == "end")
        return {
            "text": text,
            "tokens": writing.tokens,
            "ended": writing.ended,
            "start_seconds": opened - began,
            "first_seconds": (first or last) - opened,
            "seconds_per_token": (last - first) / later if first and later else None,
            "peak_rss_bytes": peak_resident_bytes(),
        }


def session(
    work: Callable[[], dict[str, Any]], told: Path, stop: Callable[[], bool] = lambda: False
) -> int:
    """Run ``work`` in a process of its own, killed as soon as ``stop`` holds; its status.

    Args:
        told: file for what ``work`` returns, as JSON.
    """
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphan tunes on
        try:
            told.write_text(json.dumps(work()))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if stop():
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def main() -> int:
    bundle, folder = map(Path, sys.argv[1:])
    job = json.loads((folder / "job.json").read_text())
    waiting, told = folder / _WAITING, folder / "session.json"
    killed = session(lambda: tune(bundle, folder, job, job["kill_after"]), told, waiting.exists)
    if killed == 0:
        print("the first session ended before the step after which to kill it", file=sys.stderr)
        return 1
    if killed != -signal.SIGKILL or not waiting.exists():  # it failed, or the kernel killed it
        return _exit_code(killed)
    print("killed; resuming", flush=True)
    status = session(lambda: tune(bundle, folder, job, None), told)
    if status != 0:
        return _exit_code(status)
    result = json.loads(told.read_text())
    if job["prompt"] is not None:
        print(f"writing behind {len(job['prompt'])} tokens", flush=True)
        status = session(lambda: write(bundle, folder, job), told)
        if status != 0:
            return _exit_code(status)
        result["writing"] = json.loads(told.read_text())
    result["device_memory_bytes"] = _memory_bytes()
    (folder / "result.json").write_text(json.dumps(result))
    return 0


def _exit_code(status: int) -> int:
    """As a shell tells it: 128 + n where signal n ended a session."""
    return status if status > 0 else 128 - status


def _memory_bytes() -> int:
    """Of the machine, from the line ``MemTotal:  123 kB``, which is the first."""
    return 1024 * int(Path("/proc/meminfo").read_text().split()[1])


if __name__ == "__main__":
    sys.exit(main())

"""A tuning run on the emulated device, killed and resumed, and a text, held against the host.

The device tunes the bundle with real rows, and then writes with it. The host replays the journal
that comes back, which must give the same values to the bit, and scores the same batches at the same
values: what their losses differ by is the floating-point kernels'.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.engines import open_engine
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.replay import Replay, replay
from seedtune.runtime.journal.start import Start
from seedtune.runtime.scoring.batch_loss import BatchLook
from seedtune.runtime.settings import Settings
from seedtune.runtime.tasks import Encoded, Observation, Task, encode_rows, task_from_spec
from seedtune.runtime.tasks.rows import Row
from seedtune.runtime.tuning.batches import batch_indices
from seedtune.runtime.tuning.live_run import examples_sha256

from .followed import follow_command
from .guest import Guest
from .host import CPU, EmulatorError, quiet
from .machine import PYTHON_PATH, Machine
from .written import compare_written, prompt_tokens

_NUDGE = np.float32(1e-6)
"""Relative change of values that only rounding can feel; 8-bit activations round far coarser."""
_SCRIPT = Path(__file__).with_name("tune_on_device.py")


@dataclass(frozen=True)
class Job:
    """What the device is to do.

    Raises:
        EmulatorError: ``length`` exceeds the bundle's bounds, or ``kill_after`` the steps.
    """

    bundle: Bundle
    task: dict[str, Any]
    """Specification, as ``task_from_spec`` takes it."""
    rows: Sequence[Row]
    """Training rows with the task's fields; the device encodes them."""
    length: int
    """Tokens to which texts are shortened."""
    settings: Settings
    kill_after: int
    """Step after which the first session is killed."""
    prompt: str | None = None
    """What the device goes on from with the tuned values, where the bundle can write; None for the
    prompt of the first row."""
    max_tokens: int = 8
    """That it writes."""

    def __post_init__(self) -> None:
        steps, longest = self.settings.resolved_steps, self.bundle.bounds.length
        if not 1 <= self.kill_after < steps:
            raise EmulatorError(f"a kill after step {self.kill_after} of {steps} is no kill")
        if not 2 <= self.length <= longest:
            raise EmulatorError(
                f"length {self.length} lies outside 2..{longest}, the bundle's bounds"
            )

    def encode(self) -> tuple[Task, list[Encoded]]:
        """The task and its examples, as the device has them.

        Raises:
            DataError: the task does not fit the bundle, or a row is unusable; the message says
                which, in the user's file.
        """
        bundle = self.bundle
        bounds = dataclasses.replace(bundle.bounds, length=self.length)
        task = task_from_spec(
            self.task, bundle.tokenizer(), bounds, bundle.pad_id, on_long="truncate"
        )
        return task, encode_rows(task, self.rows)

    def prompt_tokens(self, examples: Sequence[Encoded]) -> list[int] | None:
        """See ``written.prompt_tokens``."""
        return prompt_tokens(self.bundle, self.prompt, examples[0])


def rehearse(
    job: Job,
    device: Machine | Guest,
    *,
    timeout: float,
    console: Callable[[str], None] = quiet,
) -> dict[str, Any]:
    """Run ``job`` on the device and compare with the host.

    Args:
        timeout: seconds for the device.
        console: called with each line that the device prints.

    Returns:
        ``values_sha256`` of the device and ``replay_sha256`` of the host; of the losses of all
        batches on both, ``loss_difference_mean`` and ``_max``, beside ``rounding_difference_mean``
        and ``_max``: the same of this machine with itself, when the values move by a millionth;
        ``writing``: see ``compare_written``, None of a bundle that only scores;
        ``resumed_at_step``, ``seconds_per_step`` (median), ``start_seconds`` (from the second
        session's start to its first step), ``peak_rss_bytes`` (of the tuning process; in user mode
        with qemu); of a machine ``boot_seconds``, ``device_memory_bytes`` and
        ``device_least_available_bytes``; and the job's figures.

    Raises:
        EmulatorError: the device fails, runs out of memory or time, or encodes rows otherwise.
        DataError: as ``Job.encode`` and ``Job.prompt_tokens`` raise it, before the device starts.
    """
    task, examples = job.encode()
    prompt = job.prompt_tokens(examples)
    with tempfile.TemporaryDirectory(prefix="seedtune.emulate.") as temporary:
        folder = Path(temporary)
        _write_job(job, prompt, folder)
        if isinstance(device, Machine):
            about = _in_machine(device, job, folder, timeout, console)
        else:
            about = _in_user_mode(device, job, folder, timeout, console)
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        replayed = replay(folder / "run", Start.of(job.bundle))
        compared: dict[str, Any] = _compared(job, task, examples, folder / "run", replayed)
        steps = [line for line in read_metrics(folder / "run") if line["kind"] == "step"]
        writing = None
        if prompt is not None:
            writing = compare_written(
                job.bundle, folder / "run", prompt, job.max_tokens, found.pop("writing")
            )
    if isinstance(device, Guest):
        for name in ("device_memory_bytes", "device_least_available_bytes"):
            del found[name]  # they are the host's
    return {
        "model": job.bundle.manifest["model"]["name"],
        "device_cpu": CPU,
        **about,
        **found,
        "program_bytes": job.bundle.program_path.stat().st_size,
        "steps": replayed.history.steps,
        "batch_size": job.settings.batch_size,
        "length": job.length,
        "seconds_per_step": median(line["seconds"] for line in steps),
        "replay_sha256": replayed.sha256,
        "same_values": replayed.sha256 == found["values_sha256"],
        **compared,
        "writing": writing,
    }


def _write_job(job: Job, prompt: list[int] | None, folder: Path) -> None:
    order = {
        "task": job.task,
        "length": job.length,
        "settings": job.settings.to_dict(),
        "kill_after": job.kill_after,
        "prompt": prompt,
        "max_tokens": job.max_tokens,
    }
    (folder / "job.json").write_text(json.dumps(order), encoding="utf-8")
    # Fields that the task has no use for may be anything: dates and bytes of a Parquet file.
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in job.rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def _in_machine(
    machine: Machine, job: Job, folder: Path, timeout: float, console: Callable[[str], None]
) -> dict[str, Any]:
    done = machine.run(
        [PYTHON_PATH, f"/device/{_SCRIPT.name}", "/bundle", "/share"],
        reads={"/bundle": job.bundle.path, "/device": _SCRIPT.parent},
        writes={"/share": folder},
        timeout=timeout,
        console=console,
    )
    if done.status != 0:
        raise EmulatorError(f"the job in the machine failed ({done.status}): {_last(done.console)}")
    return {"emulator": "whole machine", "boot_seconds": done.boot_seconds}


def _in_user_mode(
    guest: Guest, job: Job, folder: Path, timeout: float, console: Callable[[str], None]
) -> dict[str, Any]:
    command = guest.command(_SCRIPT, job.bundle.path.resolve(), folder)
    status, lines = follow_command(command, timeout=timeout, line=console)
    if status != 0:
        raise EmulatorError(f"the job in user mode failed ({status}): {_last(lines)}")
    return {"emulator": "user mode"}


def _last(lines: list[str]) -> str:
    said = [line for line in lines if line and "reboot: " not in line]
    return said[-1] if said else "no reason"


@dataclass(frozen=True)
class _Nudged:
    """A look at the same batch under values that are all a little off."""

    look: BatchLook
    nudge: NDArray[np.float32]

    @property
    def at_once(self) -> int:
        return self.look.at_once

    def losses(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.look.losses(rows * self.nudge)

    def part(self, numbers: Sequence[int]) -> _Nudged:
        return _Nudged(self.look.part(numbers), self.nudge)

    def observe(self, values: NDArray[np.float32]) -> tuple[NDArray[np.float64], Observation]:
        return self.look.observe(values * self.nudge)


def _compared(
    job: Job, task: Task, examples: list[Encoded], run: Path, replayed: Replay
) -> dict[str, float]:
    """All losses of the run against this machine's, at the values that the device had."""
    bundle, settings, start = job.bundle, replayed.history.settings, Start.of(job.bundle)
    if replayed.journal.header.train_sha256 != examples_sha256(examples):
        raise EmulatorError("the device's tokenizer encodes the rows otherwise than the host's")
    lengths = np.array([example.length for example in examples])
    labels = np.array([example.gold for example in examples])
    engine = open_engine(bundle)
    entries = len(replayed.values)
    nudge = 1 + _NUDGE * np.random.default_rng(0).standard_normal(entries).astype(np.float32)
    device: list[Any] = []
    host: list[Any] = []
    nudged: list[Any] = []
    for line in read_metrics(run):
        if line["kind"] != "step":
            continue
        step = line["step"] - 1
        before = replay(run, start, until=step)
        chosen = batch_indices(
            step,
            seed=settings.seed,
            lengths=lengths,
            batch_size=settings.batch_size,
            labels=labels if settings.stratified else None,
        )
        look = BatchLook(engine, task, bundle.bounds, [examples[index] for index in chosen])
        device.append(line["losses"])
        for found, seen in ((host, look), (nudged, _Nudged(look, nudge))):
            key = {"seed": settings.seed, "step": step}
            measured = before.estimator.measure(
                seen, before.values, eps=settings.resolved_eps, **key
            )
            found.append(measured.losses.mean(axis=1))
    engine.close()
    apart, rounding = np.abs(np.subtract(device, host)), np.abs(np.subtract(nudged, host))
    return {
        "loss_mean": float(np.mean(host)),
        "loss_difference_mean": float(apart.mean()),
        "loss_difference_max": float(apart.max()),
        "rounding_difference_mean": float(rounding.mean()),
        "rounding_difference_max": float(rounding.max()),
    }

"""A tuning run on the emulated device, killed and resumed, and a text, held against the host.

The device tunes the bundle with real rows, and then writes with it. The host replays the journal
that comes back, which must give the same values to the bit, takes each step again from where the
device was, and writes behind the same prompt. Losses and text differ by the rounding of the
processors' kernels: of SmolLM2, 2 texts of 16 tokens, losses were 0.03 apart on average and 0.11 at
most, as far as this machine's own are if the values move by a millionth.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.journal.metrics import read_metrics
from seedtune.runtime.journal.operations import branch
from seedtune.runtime.journal.start import Start
from seedtune.runtime.journal.state import RunState, replay
from seedtune.runtime.model import Model
from seedtune.runtime.tasks import Encoded
from seedtune.runtime.tasks.rows import Row
from seedtune.runtime.writing import Manner, check_prompt

from .host import CPU, EmulatorError, quiet
from .machine import PYTHON_PATH, Machine
from .tune_on_device import open_short

TOKENS = 8
"""That the device writes, at most."""
TIMEOUT = 3600
"""Seconds after which the device is given up."""
_SCRIPT = Path(__file__).with_name("tune_on_device.py")


@dataclass(frozen=True)
class Job:
    """What the device is to do; see ``plan``."""

    bundle: Bundle
    task: Mapping[str, Any]
    """Specification, as ``open_model`` takes it."""
    rows: Sequence[Row]
    """Training rows; the device encodes them."""
    length: int
    """Tokens to which texts are shortened."""
    settings: Mapping[str, Any]
    """Settings of the run, by name, as ``Model.tuner`` takes them."""
    kill_after: int
    """Step after which the first session is killed."""
    train_sha256: str
    """Hash of the rows as this machine encodes them."""
    prompt: Sequence[int] | None
    """Tokens behind which the device writes with the tuned values, those before the answer of the
    first row; None for a bundle that only scores."""

    def open(self) -> Model:
        """The model of the run on this machine."""
        return open_short(self.bundle.path, self.task, self.length)


def plan(
    bundle: Bundle,
    task: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    length: int,
    settings: Mapping[str, Any],
) -> Job:
    """A job whose run this machine could begin: what the device cannot do is refused here.

    Raises:
        EmulatorError: ``length`` exceeds the bundle's bounds, or the run has less than two steps.
        DataError: the task does not fit the bundle, or a row is unusable.
        TuningError: a setting makes no sense for this task.
    """
    longest = bundle.bounds.length
    if not 2 <= length <= longest:
        raise EmulatorError(f"length {length} lies outside 2..{longest}, the bundle's bounds")
    with open_short(bundle.path, task, length) as model:
        examples = model.encode(rows)
        tokens = None
        if bundle.generation is not None:
            tokens = _before_answer(examples[0])
            check_prompt(tokens, bundle.generation.context)
        with (
            tempfile.TemporaryDirectory(prefix="seedtune.emulate.") as folder,
            model.tuner(Path(folder) / "run", examples, **settings) as tuner,
        ):
            steps = tuner.history.settings.resolved_steps
            encoded = str(tuner.history.data["train_sha256"])
    if steps < 2:
        raise EmulatorError(
            f"{len(rows)} rows make a run of {steps} step, which leaves none after the kill: give "
            "more rows, or fewer a step (--batch-size)"
        )
    return Job(bundle, task, rows, length, settings, steps // 2, encoded, tokens)


def _before_answer(example: Encoded) -> list[int]:
    row, column = example.positions[0]
    tokens: list[int] = example.tokens[row, : column + 1].tolist()
    return tokens


def rehearse(
    job: Job,
    machine: Machine,
    *,
    console: Callable[[str], None] = quiet,
) -> dict[str, Any]:
    """Run ``job`` on the machine and compare with the host.

    Args:
        console: called with each line that the device prints.

    Returns:
        ``values_sha256`` of the device and ``replay_sha256`` of the host; of the losses of all
        batches on both ``loss_difference_mean`` and ``_max``; ``writing``: None of a bundle that
        only scores, else what ``tune_on_device.write`` returned with ``host_text``, ``same_text``
        (token by token) and ``first_difference`` (None, or the ``token`` that differs, counted from
        1, as ``device`` and ``host`` have it, None where the text ended there);
        ``resumed_at_step``, ``seconds_per_step`` (median), ``start_seconds`` (from the second
        session's start to its first step), ``peak_rss_bytes`` (of the tuning process),
        ``boot_seconds``, ``device_memory_bytes``; and the job's figures.

    Raises:
        EmulatorError: the device fails, runs out of memory or time, or encodes rows otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="seedtune.emulate.") as temporary:
        folder = Path(temporary)
        _write_job(job, folder)
        done = machine.run(
            [PYTHON_PATH, f"/device/{_SCRIPT.name}", "/bundle", "/share"],
            reads={"/bundle": job.bundle.path, "/device": _SCRIPT.parent},
            writes={"/share": folder},
            timeout=TIMEOUT,
            console=console,
        )
        if done.status != 0:
            said = [line for line in done.console if line and "reboot: " not in line]
            last = said[-1] if said else "no reason"
            raise EmulatorError(f"the job in the machine failed ({done.status}): {last}")
        return {"boot_seconds": done.boot_seconds, **_compared(job, folder)}


def _write_job(job: Job, folder: Path) -> None:
    order = {
        "task": dict(job.task),
        "length": job.length,
        "settings": dict(job.settings),
        "kill_after": job.kill_after,
        "prompt": job.prompt,
        "max_tokens": TOKENS,
    }
    (folder / "job.json").write_text(json.dumps(order), encoding="utf-8")
    # Fields that the task has no use for may be anything: dates and bytes of a Parquet file.
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in job.rows]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def _compared(job: Job, folder: Path) -> dict[str, Any]:
    """What came back from the device, held against this machine."""
    run = folder / "run"
    told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    writing = told.pop("writing", None)
    done = replay(run, Start.of(job.bundle))
    if done.header.train_sha256 != job.train_sha256:
        raise EmulatorError("the device's tokenizer encodes the rows otherwise than the host's")
    steps = [line for line in read_metrics(run) if line["kind"] == "step"]
    with job.open() as model:
        losses = _losses_again(job, model, done)
        if writing is not None:
            model.load(run)
            writing |= _written_again(job, model, writing["tokens"])
    apart = np.abs(np.subtract([line["loss"] for line in steps], losses))
    settings = done.history.settings
    return {
        "model": job.bundle.manifest["model"]["name"],
        "device_cpu": CPU,
        **told,
        "program_bytes": job.bundle.program_path.stat().st_size,
        "estimator": settings.estimator,
        "steps": done.history.steps,
        "batch_size": settings.batch_size,
        "length": job.length,
        "seconds_per_step": median(line["seconds"] for line in steps),
        "replay_sha256": done.sha256,
        "same_values": done.sha256 == told["values_sha256"],
        "loss_mean": float(np.mean(losses)),
        "loss_difference_mean": float(apart.mean()),
        "loss_difference_max": float(apart.max()),
        "writing": writing,
    }


def _losses_again(job: Job, model: Model, done: RunState) -> list[float]:
    """Loss of each step on this machine, where the device stood before it."""
    examples, found = model.encode(job.rows), []
    with tempfile.TemporaryDirectory(prefix="seedtune.emulate.") as folder:
        for step in range(done.history.steps):
            again = Path(folder) / str(step)
            branch(done.path, again, step=step)
            with model.tuner(again, examples) as tuner:
                found.append(tuner.step().loss)
    return found


def _written_again(job: Job, model: Model, theirs: list[int]) -> dict[str, Any]:
    """What this machine writes greedily with the same values, against the device's tokens."""
    assert job.prompt is not None
    writing = model.writer().write(job.prompt, Manner(TOKENS))
    text, ours = "".join(writing), writing.tokens
    tokenizer = job.bundle.tokenizer()
    pairs = enumerate(zip_longest(theirs, ours), 1)
    place, *both = next(((place, *pair) for place, pair in pairs if pair[0] != pair[1]), (0,))
    names = [None if token is None else tokenizer.decode([token]) for token in both]
    difference = {"token": place, "device": names[0], "host": names[1]} if both else None
    return {
        "prompt": tokenizer.decode(job.prompt, skip_special_tokens=False),
        "prompt_tokens": len(job.prompt),
        "tokens": len(theirs),
        "host_text": text,
        "same_text": difference is None,
        "first_difference": difference,
    }

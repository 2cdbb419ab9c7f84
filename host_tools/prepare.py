"""From a model to a bundle ready to tune, in a process of its own and kept for the next time.

The quickstart, the benchmarks and the slow tests all start here. Profiling and export hold the
float model and torch; the device side must not, so they run in a child process and only files come
back. A folder that was prepared with the same model, settings and code is used as it is. The model
is the same if its files' names, sizes and times are: hashing gigabytes at every start takes longer
than all else there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seedtune import export
from seedtune.runtime.bundle import Bundle, open_bundle, program
from seedtune.runtime.errors import BundleError, SeedtuneError
from seedtune.runtime.files import default_cache, replace_file
from seedtune.runtime.process_lock import in_turn

from .data import calibration
from .this_machine import versions

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` left in its folder, and what it cost when it was made."""

    folder: Path
    bundle: Bundle
    profile_seconds: float
    export_seconds: float
    reused: bool


def prepare(
    model: str,
    folder: Path | None = None,
    *,
    to: Sequence[str] = ("executorch",),
    context: int | None = None,
    progress: Progress = lambda *now: None,
) -> Prepared:
    """Profile and export ``model`` into ``folder`` (by default a place in the cache).

    Of several processes that want the same, one makes it and the others wait.

    Args:
        to: formats of the programs.
        context: tokens of a text that the bundle can write, 0 for none; by default the export's.

    Raises:
        SeedtuneError: as profiling and export raise them.
    """
    job = {"model": model, "to": list(to), "context": context}
    key = _key(job)
    folder = folder or default_cache() / "prepared" / key[:16]
    done = _finished(folder, key)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    wait = partial(progress, "wait for another process that prepares the same", 0, 1)
    with in_turn(folder / "lock", wait):
        done = _finished(folder, key)  # by the process that was waited for
        if done is not None:
            return done
        code = _in_child(job, key, folder, progress)
        done = _finished(folder, key)
    if done is None:
        raise SeedtuneError(
            f"{folder}: preparing {model} ended early (exit code {code}); "
            "exit code -9 means that the machine ran out of memory"
        )
    return replace(done, reused=False)


def _key(job: dict[str, Any]) -> str:
    """Changes with the job, the code that makes the files and the libraries that it uses."""
    made_from = [job, _files(Path(job["model"]))]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    modules = (program.__file__, calibration.__file__, __file__)
    sources = [*sorted(Path(export.__path__[0]).rglob("*.py")), *map(Path, modules)]
    for file in sources:
        digest.update(file.read_bytes())
    digest.update(repr(versions("torch", "torchao", "executorch", "transformers")).encode())
    return digest.hexdigest()


def _files(model: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time (ns) of each of the model's files; none of a hub id."""
    files = sorted(model.rglob("*")) if model.is_dir() else [model]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def _finished(folder: Path, key: str) -> Prepared | None:
    try:
        record = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
        if record.pop("key") != key:
            return None
        return Prepared(folder=folder, bundle=open_bundle(folder / "bundle"), reused=True, **record)
    except (OSError, ValueError, TypeError, KeyError, BundleError):
        return None


def _in_child(job: dict[str, Any], key: str, folder: Path, progress: Progress) -> int:
    """Run ``_prepare`` in a process of its own, so that its torch and its memory end with it;
    returns the exit code.

    Raises:
        SeedtuneError, ModuleNotFoundError: what it raised of that kind.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_told, args=(job, key, folder, sender), daemon=True)
    worker.start()
    sender.close()
    error: BaseException | None = None
    while True:
        try:
            kind, content = receiver.recv()
        except EOFError:
            break
        if kind == "progress":
            progress(*content)
        else:
            error = content
    worker.join()
    if error is not None:
        raise error
    return worker.exitcode or 0


def _told(job: dict[str, Any], key: str, folder: Path, pipe: Any) -> None:
    """Every message is ``("progress", (stage, done, total))`` or ``("error", exception)``."""
    try:
        _prepare(job, key, folder, lambda *now: pipe.send(("progress", now)))
    except (SeedtuneError, ModuleNotFoundError) as error:
        pipe.send(("error", error))
    finally:
        pipe.close()


def _prepare(job: dict[str, Any], key: str, folder: Path, progress: Progress) -> None:
    from seedtune.export.export import export_model

    began = {"load": time.monotonic()}

    def noted(stage: str, done: int, total: int) -> None:
        began.setdefault(stage, time.monotonic())
        progress(stage, done, total)

    def calibrate(tokenizer: Any) -> tuple[Any, str]:
        text = calibration.load_calibration(tokenizer, held_out=0)
        return text.profile, text.sha256

    export_model(
        job["model"],
        folder / "bundle",
        calibrate=calibrate,
        to=job["to"],
        **({} if job["context"] is None else {"context": job["context"]}),
        progress=noted,
    )
    profiled = began["quantise"] - began.get("profile", began["quantise"])
    exported = time.monotonic() - began["quantise"]
    record = {"key": key, "profile_seconds": profiled, "export_seconds": exported}
    replace_file(folder / "prepared.json", json.dumps(record).encode())

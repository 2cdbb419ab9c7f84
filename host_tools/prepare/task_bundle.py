"""A bundle with a task and the directions learned for it, from one without; kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import Bundle, open_bundle, with_task
from seedtune.runtime.errors import BundleError, SeedtuneError
from seedtune.runtime.files import default_cache

from .child import Progress, run_in_child
from .made_from import code_sha256


def task_bundle(
    model: str,
    bundle: Bundle,
    spec: Mapping[str, Any],
    folder: Path | None = None,
    *,
    directions: int,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """``bundle`` for the task ``spec``, in ``folder`` (by default a place in the cache).

    Args:
        model: what ``bundle`` was exported from.
        directions: to learn for the task's prompt; with 0 the model is not loaded.

    Raises:
        SeedtuneError: as loading the model and learning raise them, or the process that learns
            is killed.
    """
    key = _key(bundle, spec, directions)
    folder = folder or default_cache() / "prepared" / f"task-{key[:16]}"
    note = folder / "made-from"
    if note.is_file() and note.read_text(encoding="utf-8") == key:
        try:
            return open_bundle(folder / "bundle")
        except BundleError:
            pass  # damaged since: made again
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)  # what is in the folder is being replaced
    if not directions:
        made = with_task(bundle, folder / "bundle", spec, None)
        note.write_text(key, encoding="utf-8")
        return made
    arguments = (model, bundle.path, dict(spec), folder / "bundle", directions)
    code = run_in_child(_make, *arguments, progress=progress)
    if code != 0:  # an older bundle may still be there: do not open it as the new one
        raise SeedtuneError(
            f"{folder}: learning directions ended early (exit code {code}); "
            "exit code -9 means that the machine ran out of memory"
        )
    made = open_bundle(folder / "bundle")
    note.write_text(key, encoding="utf-8")
    return made


def _key(bundle: Bundle, spec: Mapping[str, Any], directions: int) -> str:
    """Changes with what the directions come from, the code that chooses the texts included."""
    digest = hashlib.sha256(json.dumps([bundle.sha256, spec, directions], sort_keys=True).encode())
    text = "seedtune.host_tools.data.sentences", "seedtune.host_tools.data.calibration"
    digest.update(code_sha256("seedtune.export.directions", *text).encode())
    return digest.hexdigest()


def write_task_bundle(
    model: str,
    bundle: Bundle,
    spec: Mapping[str, Any],
    target: Path,
    *,
    directions: int,
    text: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Bundle:
    """Learn directions in this process and write ``bundle`` with them and ``spec`` to ``target``.

    Args:
        text: generic text (see ``calibration.load_calibration``); by default Wikipedia passages.

    Raises:
        SeedtuneError: as loading the model, learning and writing raise them.
    """
    from seedtune.export.directions.task_basis import learn_basis
    from seedtune.export.model.load_model import load_causal_lm

    from ..data.sentences import load_sentences

    progress("load", 0, 1)
    loaded = load_causal_lm(model)
    progress("load", 1, 1)
    basis = learn_basis(
        loaded,
        bundle,
        spec,
        load_sentences(text),
        directions=directions,
        progress=lambda done, total: progress("directions", done, total),
    )
    return with_task(bundle, target, spec, basis)


def _make(
    model: str, bundle: Path, spec: dict[str, Any], target: Path, count: int, progress: Progress
) -> None:
    write_task_bundle(model, open_bundle(bundle), spec, target, directions=count, progress=progress)

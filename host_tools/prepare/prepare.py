"""From a model to a bundle ready to tune, in a process of its own and kept for the next time.

The quickstart, the benchmarks and the slow tests all start here. Profiling and export hold the
float model and torch; the device side must not, so they run in a child process and only files come
back. A folder that was prepared with the same model, settings and code is used as it is. The model
is the same if its files' names, sizes and times are: hashing gigabytes at every start takes longer
than all else there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from seedtune.runtime.bundle import DEFAULT_BOUNDS, Bounds, Bundle, open_bundle
from seedtune.runtime.errors import BundleError, SeedtuneError
from seedtune.runtime.files import default_cache

from ..estimate.process_memory import peak_resident_bytes
from .child import Progress, run_in_child
from .made_from import code_sha256

if TYPE_CHECKING:
    from seedtune.export.model.load_model import LoadedModel
    from seedtune.export.profile.profile_file import Profile

    from ..data.calibration import Calibration


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` left in its folder, and what it cost when it was made."""

    folder: Path
    bundle: Bundle
    profile_seconds: float
    export_seconds: float
    profile_peak_bytes: int
    reused: bool

    @property
    def dense_program(self) -> Path:
        """The same int4 program without the sparse term (see ``prepare(dense=True)``)."""
        return self.folder / "dense.pte"


def prepare(
    model: str,
    folder: Path | None = None,
    *,
    bounds: Bounds = DEFAULT_BOUNDS,
    mask: str = "compact",
    fraction: float = 0.001,
    recipe: dict[str, Any] | None = None,
    dense: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Prepared:
    """Profile and export ``model`` into ``folder`` (by default a place in the cache).

    Args:
        recipe: fields of ``seedtune.export.export.Recipe`` that differ from its defaults.
        dense: also lower the program without the sparse term, for comparison.

    Raises:
        SeedtuneError: as profiling and export raise them.
    """
    job = {
        "model": model,
        "bounds": asdict(bounds),
        "mask": mask,
        "fraction": fraction,
        "recipe": recipe or {},
    }
    key = _key(job)
    folder = folder or default_cache() / "prepared" / key[:16]
    done = _finished(folder, key, dense)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    code = run_in_child(_prepare, job, key, folder, dense, progress=progress)
    done = _finished(folder, key, dense)
    if done is None:
        raise SeedtuneError(
            f"{folder}: preparing {model} ended early (exit code {code}); "
            "exit code -9 means that the machine ran out of memory"
        )
    return Prepared(**{**done.__dict__, "reused": False})


def _key(job: dict[str, Any]) -> str:
    """Changes with the job, the code that makes the files and the libraries that it uses."""
    made_from = [job, _files(Path(job["model"]))]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    sources = "seedtune.export", "seedtune.host_tools.data.calibration", __name__
    digest.update(code_sha256(*sources, without=("seedtune.export.directions",)).encode())
    for library in ("torch", "torchao", "executorch", "transformers"):
        try:
            digest.update(importlib.metadata.version(library).encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(b"missing")
    return digest.hexdigest()


def _files(model: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time (ns) of each of the model's files; none of a hub id."""
    files = sorted(model.rglob("*")) if model.is_dir() else [model]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def _finished(folder: Path, key: str, dense: bool) -> Prepared | None:
    try:
        record = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
        if record.pop("key") != key:
            return None
        done = Prepared(folder=folder, bundle=open_bundle(folder / "bundle"), reused=True, **record)
    except (OSError, ValueError, TypeError, KeyError, BundleError):
        return None
    return None if dense and not done.dense_program.is_file() else done


def _prepare(job: dict[str, Any], key: str, folder: Path, dense: bool, progress: Progress) -> None:
    from seedtune.export.export import Recipe, export_bundle, export_without_sparse_term
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.export.profile.masks import build_mask, mask_method

    from ..data.calibration import load_calibration
    from ..reports.profile_report import draw, report

    bounds = Bounds(**job["bounds"])
    progress("load", 0, 1)
    loaded = load_causal_lm(job["model"])
    progress("load", 1, 1)
    began = time.monotonic()
    file = folder / "profile.safetensors"
    calibration = load_calibration(loaded.tokenizer)
    profile = _profile(loaded, calibration, file, progress)
    profile_seconds, profile_peak = time.monotonic() - began, peak_resident_bytes()
    weights = None
    if job["mask"] == "magnitude":
        weights = {name: loaded.model.get_submodule(name).weight.numpy() for name in profile.layers}
    mask = build_mask(profile, job["fraction"], mask_method(job["mask"], weights=weights))
    draw(profile, report(profile, mask), folder / "profile.png")
    began = time.monotonic()
    export_bundle(
        loaded,
        mask,
        folder / "bundle",
        bounds=bounds,
        recipe=Recipe(**job["recipe"]),
        activity={name: layer.input_absmax for name, layer in profile.layers.items()},
        calibration=calibration.profile,
        mask_description={
            "method": job["mask"],
            "fraction": job["fraction"],
            "profile_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        },
        progress=progress,
    )
    export_seconds = time.monotonic() - began
    if dense:
        program = export_without_sparse_term(
            load_causal_lm(job["model"]),
            bounds,
            lambda stage, done, total: progress(f"{stage} without sparse term", done, total),
        )
        (folder / "dense.pte").write_bytes(program)
    record = {
        "key": key,
        "profile_seconds": profile_seconds,
        "export_seconds": export_seconds,
        "profile_peak_bytes": profile_peak,
    }
    (folder / "prepared.json").write_text(json.dumps(record), encoding="utf-8")


def _profile(
    loaded: LoadedModel, calibration: Calibration, file: Path, progress: Progress
) -> Profile:
    """The one in ``file`` if the same model, text and code made it, else a new one, saved there."""
    from seedtune.export.profile.fisher import compute_profile
    from seedtune.export.profile.profile_file import load_profile, save_profile

    note = file.with_suffix(".made-by")
    made_by = code_sha256("seedtune.export.profile.fisher")
    if file.is_file() and note.is_file() and note.read_text(encoding="utf-8") == made_by:
        kept = load_profile(file)
        if (kept.model_sha256, kept.text_sha256) == (loaded.sha256, calibration.sha256):
            return kept
    note.unlink(missing_ok=True)
    found = compute_profile(
        loaded.model,
        calibration.profile,
        model_name=loaded.name,
        model_sha256=loaded.sha256,
        text_sha256=calibration.sha256,
        progress=lambda done, total: progress("profile", done, total),
    )
    save_profile(found, file)
    note.write_text(made_by, encoding="utf-8")
    return found


def example_batch(rows: int, length: int, vocabulary: int) -> tuple[Any, Any, Any]:
    """Random tokens ``[rows, length]``, last positions and two candidates each, for timing."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, (rows, length))
    positions = np.arange(rows) * length + length - 1
    return tokens, positions, np.tile(np.array([[1, 2]]), (rows, 1))

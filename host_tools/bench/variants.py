"""Programs of the quickstart's model that differ in mask or recipe and share one profile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from seedtune.runtime.files import default_cache

from ..data.fetch import fetch
from ..prepare.prepare import Prepared, prepare
from ..quickstart import MODEL


def quickstart_program() -> Prepared:
    """The quickstart's bundle and the same program without the sparse term, from the cache."""
    return prepare(str(fetch(MODEL)), dense=True)


def variant(name: str, base: Prepared, **options: Any) -> Prepared:
    """Export once more with other ``options`` of ``prepare``; profiles nothing anew.

    What ``options`` leave open is as in ``base``.
    """
    mask = base.bundle.manifest["mask"]
    options = {"mask": mask["method"], "fraction": mask["fraction"], **options}
    folder = default_cache() / "bench" / "variants" / name
    profile = folder / "profile.safetensors"
    if not profile.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _share(base.folder / "profile.safetensors", profile)
    return prepare(str(fetch(MODEL)), folder, **options)


def _share(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)

"""Programs of the quickstart's model that differ in mask or recipe."""

from __future__ import annotations

from typing import Any

from seedtune.runtime.files import default_cache

from ...data.fetch import fetch
from ...prepare.prepare import Prepared, prepare
from ...quickstart import MODEL


def quickstart_program() -> Prepared:
    """The quickstart's bundle, from the cache."""
    return prepare(str(fetch(MODEL)))


def variant(name: str, base: Prepared, **options: Any) -> Prepared:
    """Export once more with other ``options`` of ``prepare``.

    What ``options`` leave open is as in ``base``.
    """
    mask = base.bundle.manifest["mask"]
    options = {"mask": mask["method"], "fraction": mask["fraction"], **options}
    folder = default_cache() / "bench" / "variants" / name
    return prepare(str(fetch(MODEL)), folder, **options)

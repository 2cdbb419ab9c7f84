"""Committed tables of results: rows by their key, merged under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError

from ..measuring.results_files import read_figures, write_figures

QUALITY = "quality"
"""The table of ``bench quality``, which other benchmarks read."""

Row = dict[str, Any]
Rows = dict[str, Row]


def row_key(method: str, task: str, seed: int, settings: dict[str, Any]) -> str:
    """``method/task/seed/hash of the settings``."""
    return f"{method}/{task}/{seed}/{settings_hash(settings)}"


def settings_hash(settings: dict[str, Any]) -> str:
    """Eight hex digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def read_rows(folder: Path, name: str = QUALITY) -> Rows:
    """Rows of the results ``name`` in ``folder``; none if there is no file.

    Raises:
        SeedtuneError: the file is not one that ``merge_rows`` wrote.
    """
    figures = read_figures(name, folder)
    if figures is None:
        return {}
    if "rows" not in figures:
        raise SeedtuneError(f"{folder / name}.json: holds no table of results")
    rows: Rows = figures["rows"]
    return rows


def merge_rows(rows: Rows, folder: Path, name: str = QUALITY) -> None:
    """Add ``rows`` to the results ``name`` in ``folder``; a row of the same key is replaced, none
    is lost.

    Benchmarks that run at the same time wait for one another. Each row names its own ``machine``;
    the table's is that of the last merge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        merged = read_rows(folder, name) | rows
        write_figures(name, {"rows": dict(sorted(merged.items()))}, folder)
    finally:
        os.close(lock)

"""Committed figures: one JSON a benchmark, with the machine that they were measured on. Those of
``quality`` and ``senders`` are tables: rows by their key, merged under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file

from ...this_machine import machine

Row = dict[str, Any]
Rows = dict[str, Row]
RESULTS = Path(__file__).parents[1] / "results"


def say(line: str) -> None:
    """Progress of a long benchmark, for whoever waits: standard output is for the figures."""
    print(line, file=sys.stderr, flush=True)


def write_figures(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any]:
    """Write ``NAME.json`` into ``folder`` and return its content: ``figures`` and the machine.

    A kill in the midst leaves the file as it was.

    Raises:
        SeedtuneError: the folder cannot be written.
    """
    content = {"machine": machine(), **figures}
    file = folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise SeedtuneError(f"{file}: cannot be written: {error.strerror or error}") from error
    return content


def read_figures(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """What ``write_figures`` wrote into ``NAME.json``; None where there is no file.

    Raises:
        SeedtuneError: the file holds something else.
    """
    file = folder / f"{name}.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SeedtuneError(f"{file}: holds no figures ({error!r})") from error
    if not isinstance(found, dict):
        raise SeedtuneError(f"{file}: holds no figures (a JSON object is wanted)")
    return found


def row_key(method: str, task: str, seed: int, settings: dict[str, Any]) -> str:
    """``method/task/seed/hash of the settings``."""
    return f"{method}/{task}/{seed}/{settings_hash(settings)}"


def settings_hash(settings: dict[str, Any]) -> str:
    """Eight hex digits that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def read_rows(folder: Path, name: str = "quality") -> Rows:
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


def merge_rows(rows: Rows, folder: Path, name: str = "quality") -> None:
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

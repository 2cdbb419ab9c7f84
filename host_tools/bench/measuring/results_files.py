"""Committed figures: one JSON a benchmark, with the machine that they were measured on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import SeedtuneError
from seedtune.runtime.files import replace_file

from ...this_machine import machine

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

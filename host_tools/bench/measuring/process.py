"""Work in a process of its own: its start and its peak memory have nothing else in them."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from seedtune.runtime.errors import SeedtuneError


def run_module(module: str, *arguments: object) -> dict[str, Any]:
    """Run ``python -m MODULE ARGUMENTS`` and return the JSON object on its last line.

    What it writes to standard error is passed on as it comes. Its peak memory it tells itself: what
    the kernel tells a parent of a child begins with the parent's own size at the fork.

    Raises:
        SeedtuneError: it failed, with the last line of its standard error; or there is no object.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    shown = f"`python {' '.join(command[1:])}`"
    said = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        with subprocess.Popen(
            command, stdout=printed, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                sys.stderr.write(line)
                said = line.strip().removeprefix("error: ") or said
        printed.seek(0)
        last = (printed.read().splitlines() or [""])[-1]
    if process.returncode != 0:
        raise SeedtuneError(
            f"{shown} ended with exit code {process.returncode}: {said or 'no message'}"
        )
    try:
        found = json.loads(last)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SeedtuneError(f"{shown} printed no JSON object on its last line, but {last!r}")
    return found


def call_function(function: Callable[..., Any], *arguments: object) -> Any:
    """``function(*arguments)`` in a fresh interpreter, which an interrupt ends.

    Args:
        function: a module's; it, the arguments and what it returns are pickled.

    Raises:
        SeedtuneError: the process ended early, as it does where memory is short.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise SeedtuneError(
                f"the process of {function.__module__}.{function.__qualname__} ended early; "
                "was there too little memory?"
            ) from error

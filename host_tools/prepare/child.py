"""Work in a process of its own, so that its torch and its memory end with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from seedtune.runtime.errors import SeedtuneError

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def run_in_child(
    work: Callable[..., None], *arguments: Any, progress: Progress = lambda stage, done, total: None
) -> int:
    """Run ``work(*arguments, progress)`` and return its exit code once it is over.

    Args:
        work: a module's function.

    Raises:
        SeedtuneError, ModuleNotFoundError: what ``work`` raised of that kind.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_run, args=(work, arguments, sender), daemon=True)
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


def _run(work: Callable[..., None], arguments: tuple[Any, ...], pipe: Any) -> None:
    """Every message is ``("progress", (stage, done, total))`` or ``("error", exception)``."""
    try:
        work(*arguments, lambda *now: pipe.send(("progress", now)))
    except (SeedtuneError, ModuleNotFoundError) as error:
        pipe.send(("error", error))
    finally:
        pipe.close()

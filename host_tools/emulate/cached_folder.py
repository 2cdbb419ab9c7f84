"""Folders of the emulator in seedtune's cache: made once, and whole or not there at all."""

import os
from collections.abc import Callable
from pathlib import Path

from seedtune.runtime.files import clean_up, default_cache, workplace

from .host import EmulatorError


def cached_folder(name: str, fill: Callable[[Path, Path], None]) -> Path:
    """The folder ``name``, made first where it is not there.

    Args:
        name: must change with whatever the content depends on.
        fill: called with the folder to fill, which is empty, and another for scratch files.

    Raises:
        EmulatorError: as ``fill``, or the cache cannot be written.
    """
    parent = default_cache() / "emulator"
    target = parent / name
    clean_up(parent)
    if target.is_dir():
        return target
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with workplace(target) as work:
            content, scratch = work / "content", work / "scratch"
            content.mkdir()
            scratch.mkdir()
            fill(content, scratch)
            try:
                os.rename(content, target)
            except OSError:
                if not target.is_dir():  # else another process was first
                    raise
    except OSError as error:
        raise EmulatorError(f"{parent}: cannot be written: {error}; set SEEDTUNE_CACHE") from error
    return target

"""Refusals before minutes of work: what a command would otherwise find wrong only at its end."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedtune.runtime.errors import SeedtuneError

if TYPE_CHECKING:
    from seedtune.runtime.bundle import Bounds
    from tokenizers import Tokenizer


def check_file(file: Path) -> None:
    """See that ``file`` can be written.

    Raises:
        SeedtuneError: its folder is missing or not writable, or it is a folder itself.
    """
    _check_parent(file)
    if file.is_dir():
        raise SeedtuneError(f"{file}: is a folder; choose another name for the file")


def check_target(folder: Path) -> None:
    """See that a bundle can be written to ``folder``, as ``write_bundle`` will.

    Raises:
        SeedtuneError: its parent is missing or not writable, or it holds something else.
    """
    from seedtune.runtime.bundle.write import check_bundle_folder

    _check_parent(folder)
    check_bundle_folder(folder)


def check_spec(spec: Mapping[str, Any], bounds: Bounds) -> None:
    """See that ``spec`` is a task specification, before there is a tokenizer to encode with.

    Raises:
        DataError: as ``task_from_spec``.
    """
    from seedtune.runtime.tasks import task_from_spec
    from tokenizers import Tokenizer, models

    task_from_spec(spec, Tokenizer(models.BPE()), bounds, 0)


def check_task(spec: Mapping[str, Any], tokenizer: Tokenizer, bounds: Bounds, pad_id: int) -> None:
    """See that a bundle can have the task ``spec``.

    Raises:
        DataError: the specification is wrong, or its prompt leaves no room for any text.
    """
    from seedtune.runtime.tasks import task_from_spec

    task = task_from_spec(spec, tokenizer, bounds, pad_id, on_long="truncate")
    task.encode(task.made_up_row(["a"], random.Random(0)), "the shortest text")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise SeedtuneError(f"{path.parent}: no such folder; create it first")
    if not os.access(path.parent, os.W_OK):
        raise SeedtuneError(f"{path.parent}: not writable; choose another folder")

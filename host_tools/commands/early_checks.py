"""Refusals before minutes of work: what a command would otherwise find wrong only at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedtune.runtime.errors import SeedtuneError

if TYPE_CHECKING:
    from seedtune.export.model.load_model import LoadedModel
    from seedtune.runtime.bundle import Bounds


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


def check_task(spec: Mapping[str, Any], model: LoadedModel, bounds: Bounds) -> None:
    """See that the bundle of ``model`` can have the task ``spec``.

    Raises:
        DataError: the specification is wrong, or its prompt leaves no room for any text.
    """
    from seedtune.runtime.tasks import task_from_spec
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.tokenizer_json.decode())
    tokenizer.no_truncation()  # as the bundle's will be
    tokenizer.no_padding()
    task = task_from_spec(
        spec, tokenizer, bounds, 0, on_long="truncate", chat=model.chat, ends=model.end_ids
    )
    task.encode(task.shortest_row(), "the shortest text")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise SeedtuneError(f"{path.parent}: no such folder; create it first")
    if not os.access(path.parent, os.W_OK):
        raise SeedtuneError(f"{path.parent}: not writable; choose another folder")

"""A bundle with a task, from one without or with another; kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedtune.runtime.bundle import Bundle, open_bundle, with_task
from seedtune.runtime.errors import BundleError


def task_bundle(bundle: Bundle, spec: Mapping[str, Any], folder: Path) -> Bundle:
    """``bundle`` for the task ``spec``, in ``folder``.

    Raises:
        BundleError: the folder cannot be written.
    """
    content = json.dumps([bundle.sha256, spec], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()
    note = folder / "made-from"
    if note.is_file() and note.read_text(encoding="utf-8") == key:
        try:
            return open_bundle(folder / "bundle")
        except BundleError:
            pass  # damaged since: made again
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)  # what is in the folder is being replaced
    made = with_task(bundle, folder / "bundle", spec)
    note.write_text(key, encoding="utf-8")
    return made

"""A hash of the code that makes a file, so that what other code made is not taken for it."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path


def code_sha256(*names: str) -> str:
    """SHA-256 (hex) of the sources of modules and packages, none of which is imported.

    Args:
        names: such as ``seedtune.export``; of a package, all modules below it.
    """
    digest = hashlib.sha256()
    for name in names:
        source = _source(name)
        files = sorted(source.parent.rglob("*.py")) if source.stem == "__init__" else [source]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _source(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None, name
    return Path(spec.origin)

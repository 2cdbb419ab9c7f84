"""The profile of a model, kept in the cache from one export to the next."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from seedtune.runtime.errors import ModelError
from seedtune.runtime.files import default_cache, workplace
from seedtune.runtime.process_lock import in_turn

from ..model.load_model import LoadedModel
from . import block_by_block, fisher
from .profile_file import Profile, load_profile

KEPT = 2
"""Profiles of a model: each takes four bytes a weight."""


def kept_profile(
    loaded: LoadedModel,
    tokens: npt.NDArray[np.int64],
    text_sha256: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    waiting: Callable[[], None] = lambda: None,
) -> Profile:
    """The profile of ``loaded`` over ``tokens`` (int64 ``[n, length]``), computed only where the
    cache holds none of this model, these tokens and this code, and no other process is making one
    of this model. The cache keeps the ``KEPT`` of a model that were used last.

    Args:
        text_sha256: of the text that ``tokens`` were cut from, for a profile that is made.
        waiting: called once if another process is waited for.

    Raises:
        ModelError: as ``compute_profile`` raises it, or the cache cannot be written.
    """
    content = hashlib.sha256(str(tokens.shape).encode() + tokens.tobytes())
    for each in (fisher, block_by_block):
        content.update(Path(str(each.__file__)).read_bytes())
    folder = default_cache() / "profiles" / loaded.sha256[:32]
    file = folder / f"{content.hexdigest()[:32]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with in_turn(folder / "lock", waiting):
            kept = _kept(file, loaded.sha256)
            if kept is not None:
                return kept
            with workplace(file) as work:
                fisher.compute_profile(
                    loaded.model,
                    tokens,
                    model_name=loaded.name,
                    model_sha256=loaded.sha256,
                    text_sha256=text_sha256,
                    file=work / file.name,
                    progress=progress,
                )
                os.replace(work / file.name, file)
            files = sorted(folder.glob("*.safetensors"), key=lambda each: each.stat().st_mtime)
            for old in files[:-KEPT]:
                old.unlink()
    except OSError as error:
        raise ModelError(f"{file}: cannot be written: {error.strerror or error}") from error
    return load_profile(file)


def _kept(file: Path, model_sha256: str) -> Profile | None:
    with contextlib.suppress(ModelError, OSError):  # none there, damaged, or of another version
        kept = load_profile(file)
        if kept.model_sha256 == model_sha256:
            os.utime(file)
            return kept
    return None

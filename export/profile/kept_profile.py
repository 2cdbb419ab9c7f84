"""The profile of a model, kept in the cache from one export to the next."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from seedtune.runtime.errors import ModelError
from seedtune.runtime.files import default_cache

from ..model.load_model import LoadedModel
from . import block_by_block, fisher
from .profile_file import Profile, load_profile


def kept_profile(
    loaded: LoadedModel,
    tokens: npt.NDArray[np.int64],
    text_sha256: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """The profile of ``loaded`` over ``tokens`` (int64 ``[n, length]``), computed only where the
    cache holds none of this model, text and code.

    Raises:
        ModelError: as ``compute_profile`` raises it, or the cache cannot be written.
    """
    file = default_cache() / "profiles" / f"{loaded.sha256[:32]}.safetensors"
    sources = [Path(each.__file__).read_bytes() for each in (fisher, block_by_block)]
    code = hashlib.sha256(b"".join(sources)).hexdigest()[:16]
    wanted = (loaded.sha256, text_sha256, code, *tokens.shape)
    try:
        kept = load_profile(file)
    except ModelError:  # none there, damaged, or of another version
        kept = None
    if kept is not None:
        settings = [kept.settings.get(name) for name in ("code", "sequences", "length")]
        if (kept.model_sha256, kept.text_sha256, *settings) == wanted:
            return kept
    with contextlib.suppress(OSError):  # writing says what is wrong
        file.parent.mkdir(parents=True, exist_ok=True)
    return fisher.compute_profile(
        loaded.model,
        tokens,
        model_name=loaded.name,
        model_sha256=loaded.sha256,
        text_sha256=text_sha256,
        file=file,
        progress=progress,
        about={"code": code},
    )

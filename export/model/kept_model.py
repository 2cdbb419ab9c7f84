"""Models in seedtune's cache that are made of something else: made once, and whole or not there."""

from collections.abc import Callable
from pathlib import Path

from seedtune.runtime.errors import ModelError
from seedtune.runtime.files import default_cache, kept_folder, sync_tree


def kept_model(name: str, what: str, make: Callable[[Path], None]) -> Path:
    """The Hugging Face folder ``name``, made first where it is not there.

    Args:
        name: must change with whatever the content depends on.
        what: is kept, for errors.
        make: called with the folder to fill.

    Raises:
        ModelError: as ``make``, or the cache cannot be written.
    """
    folder = default_cache() / "models" / name

    def whole(content: Path, scratch: Path) -> None:
        make(content)
        sync_tree(content)

    try:
        return kept_folder(folder, whole)
    except OSError as error:
        raise ModelError(
            f"{folder.parent}: cannot store {what}: {error.strerror or error}; set SEEDTUNE_CACHE "
            "to a writable folder with room"
        ) from error

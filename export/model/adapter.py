"""A model that is an adapter of peft and the model below it: merged once, and kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import DownloadError, ModelError
from seedtune.runtime.schema import parse_json

from ..quiet import first_line, quiet
from .kept_model import kept_model

CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The model that an adapter says it belongs on.

    Raises:
        ModelError: it names none.
    """
    try:
        told = parse_json((folder / CONFIG).read_bytes())
        base = told.get("base_model_name_or_path") if isinstance(told, dict) else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG}: cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder / CONFIG}: names no base model; give it with --base MODEL")
    return base


def merged_folder(folder: Path, base: str, load: Callable[[str], Any]) -> Path:
    """Folder in the cache that holds the model ``base`` with the adapter in ``folder`` merged in,
    in float32.

    Args:
        load: from a name to a ``LoadedModel`` in float32.

    Raises:
        ModelError: the base model cannot be loaded, the adapter does not fit it or cannot be
            merged.
    """
    if is_adapter(Path(base)):
        raise ModelError(
            f"{folder}: its base model {base} is an adapter, too; merge that one first, and give "
            "what comes out with --base"
        )
    try:
        below = load(base)
    except (DownloadError, ModelError) as error:
        raise ModelError(
            f"{folder}: its base model cannot be loaded (another one: --base MODEL): {error}"
        ) from error
    digest = hashlib.sha256(below.sha256.encode())
    for file in sorted(folder.glob("adapter_*")):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())

    def make(made: Path) -> None:
        with quiet():
            from peft import PeftModel

            try:
                adapted = PeftModel.from_pretrained(below.model, folder)
                model = adapted.merge_and_unload(safe_merge=True)
            except Exception as error:  # peft raises many kinds; all mean "does not fit"
                told = f"{folder}: cannot be merged into {base}: {first_line(error)}"
                raise ModelError(told) from error
            model.save_pretrained(made)
            below.tokenizer.save_pretrained(made)

    return kept_model(f"adapter-{digest.hexdigest()[:32]}", f"the merged {folder.name}", make)

"""Writing a bundle: it appears whole and checked, or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from ..errors import BundleError
from ..files import check_output, replace_folder, sync_tree, workplace
from ..schema import parse_json
from .archive import local_bundle, pack_archive
from .bundle import Bundle, open_folder
from .manifest import (
    CHAT,
    FORMAT,
    MANIFEST,
    TERMS,
    TEXT,
    TOKENIZER,
    VALUES,
    VERSION,
    Layer,
    manifest_digest,
)
from .parts import ChatPart, parse_tokenizer, vocabulary_of
from .program import Adapter, Bounds, Program
from .terms import TermsInfo
from .text_head import TextHeadInfo


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a bundle is made of. Its hashes, and what follows from the parts, are filled in."""

    model: Mapping[str, Any]
    """``name, architecture, sha256, vocab_size, hidden_size, layers``."""
    mask: Mapping[str, Any]
    """``method, fraction, profile_sha256``."""
    quantisation: Mapping[str, Any]
    """Free description of the number formats."""
    programs: Sequence[Program]
    """In any order; engines have one of preference."""
    files: Mapping[str, Path | bytes]
    """Each file that programs name, or its bytes."""
    bounds: Bounds
    values: NDArray[np.float16]
    """float16 ``[K]``."""
    indices: NDArray[np.int64]
    """int64 ``[K]``, strictly increasing inside each layer."""
    layers: Sequence[Layer]
    """The matrices in order; their counts add up to ``K``."""
    tokenizer_json: bytes
    pad_id: int
    end_ids: Sequence[int] = ()
    """Tokens with which the model ends a text."""
    hidden_blocks: Sequence[int] = ()
    """Decoder blocks below each of the hidden states that programs return besides
    log-probabilities; none if they return none."""
    mean_blocks: Sequence[int] = ()
    """The same of those that are means over the row so far; they come last."""
    adapter: Adapter | None = None
    """What programs take to move what the head reads."""
    text_head: TextHeadInfo | None = None
    """What a text head is learned from; None if none can be."""
    text_frame: bytes = b""
    """The part that goes with it (see ``text_head``)."""
    terms: TermsInfo | None = None
    """The low-rank terms that programs take."""
    terms_part: bytes = b""
    """The part that goes with them (see ``terms``)."""
    chat: ChatPart | None = None
    """The model's chat template."""
    task: Mapping[str, Any] | None = None


def write_bundle(folder: str | Path, contents: Contents) -> Bundle:
    """Write a bundle folder so that it appears whole or not at all, and open it.

    The parts are written beside ``folder`` under a temporary name, checked exactly as
    ``open_bundle`` checks them, then renamed. An existing bundle of that name is replaced only
    by a new one that passed; any other non-empty folder is refused.

    Raises:
        BundleError: the parts disagree, or the folder cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {
        "values": np.ascontiguousarray(contents.values),
        "indices": np.ascontiguousarray(contents.indices),
    }
    tokenizer = contents.tokenizer_json
    parts = {**contents.files, VALUES: save_safetensors(tensors), TOKENIZER: tokenizer}
    if contents.text_head is not None:
        parts[TEXT] = contents.text_frame
    if contents.terms is not None:
        parts[TERMS] = contents.terms_part
    if contents.chat is not None:
        parts[CHAT] = contents.chat.to_bytes()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": dict(contents.model),
        "mask": {**contents.mask, "entries": len(contents.values)},
        "quantisation": dict(contents.quantisation),
        "programs": [asdict(program) for program in contents.programs],
        "bounds": asdict(contents.bounds),
        "hidden_blocks": list(contents.hidden_blocks),
        "mean_blocks": list(contents.mean_blocks),
        "adapter": None if contents.adapter is None else asdict(contents.adapter),
        "text_head": None if contents.text_head is None else asdict(contents.text_head),
        "terms": None if contents.terms is None else asdict(contents.terms),
        "layers": [asdict(layer) for layer in contents.layers],
        "tokenizer": {
            "sha256": hashlib.sha256(tokenizer).hexdigest(),
            "pad_id": contents.pad_id,
            "end_ids": list(contents.end_ids),
            "vocab_size": vocabulary_of(parse_tokenizer(tokenizer, Path(folder) / TOKENIZER)),
        },
        "task": None if contents.task is None else dict(contents.task),
    }
    folder = Path(os.path.abspath(folder))
    check_bundle_folder(folder)
    left, work = contextlib.ExitStack(), folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = left.enter_context(workplace(folder)) / "bundle"
        work.mkdir()
        for name, content in parts.items():
            if isinstance(content, bytes):
                (work / name).write_bytes(content)
            else:
                shutil.copyfile(content, work / name)
        manifest["parts"] = {name: _describe(work / name) for name in parts}
        manifest["sha256"] = manifest_digest(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (work / MANIFEST).write_text(text + "\n", encoding="utf-8")
        bundle = open_folder(work)
        if bundle.text_head is not None:
            bundle.text_frame()
        if bundle.terms is not None:
            bundle.terms_part()
        sync_tree(work)
        check_bundle_folder(folder)  # minutes may have passed
        replace_folder(work, folder)
    except BundleError as error:
        raise BundleError(str(error).replace(str(work), str(folder))) from error
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        left.close()
    return replace(bundle, path=folder)


def check_bundle_folder(folder: Path) -> None:
    """See that nothing would go with what stands at ``folder`` when a bundle takes its place.

    Raises:
        BundleError: it is a file, a link, or a folder that holds other files than a bundle's.
    """
    other = f"{folder}: exists and is not a bundle; choose another output folder"
    if folder.is_symlink() or folder.is_file():
        raise BundleError(other)
    names = set(os.listdir(folder)) if folder.is_dir() else set()
    if not names:
        return
    try:
        own = {MANIFEST, *parse_json((folder / MANIFEST).read_bytes())["parts"]}
    except (OSError, ValueError, TypeError, KeyError):
        raise BundleError(other) from None
    for name in sorted(names - own):
        raise BundleError(
            f"{folder / name}: is no part of the bundle there, which would be replaced; move it "
            "away, or choose another output folder"
        )


def pack_bundle(folder: str | Path, file: str | Path) -> Path:
    """Check the bundle in ``folder``, here or on the hub, and write it as one file (a zip without
    compression).

    Raises:
        BundleError: damaged, or the file cannot be written.
        DownloadError: the hub does not deliver it.
        SeedtuneError: the file would be one of the bundle's own.
    """
    folder = local_bundle(folder)
    check_output(Path(file), folder)
    bundle = open_folder(folder)
    return pack_archive(bundle.path, bundle.manifest["parts"], Path(file))


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": file.stat().st_size}

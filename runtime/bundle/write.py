"""Writing a bundle: it appears whole and checked, or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from ..errors import BundleError
from ..files import check_output, replace_folder, sync_tree, workplace
from ..schema import parse_json
from .archive import pack_archive
from .bundle import Bundle, open_folder
from .chat import Chat
from .manifest import (
    CHAT,
    FORMAT,
    MANIFEST,
    TEXT,
    TOKENIZER,
    VALUES,
    VERSION,
    Adapter,
    Bounds,
    Layer,
    Program,
    TextHeadInfo,
    manifest_digest,
)
from .parts import parse_tokenizer, read_part, vocabulary_of


def write_bundle(
    folder: str | Path,
    *,
    programs: Sequence[Program],
    files: Mapping[str, Path | bytes],
    values: NDArray[np.float16],
    indices: NDArray[np.int64],
    layers: Sequence[Layer],
    tokenizer_json: bytes,
    model: Mapping[str, Any],
    mask: Mapping[str, Any],
    quantisation: Mapping[str, Any],
    bounds: Bounds,
    pad_id: int,
    hidden_blocks: Sequence[int] = (),
    mean_blocks: Sequence[int] = (),
    adapter: Adapter | None = None,
    text_head: TextHeadInfo | None = None,
    text_frame: Path | bytes = b"",
    chat: Chat | None = None,
    end_ids: Sequence[int] = (),
    task: Mapping[str, Any] | None,
) -> Bundle:
    """Write a bundle folder so that it appears whole or not at all, and open it.

    The parts are written beside ``folder`` under a temporary name, checked exactly as
    ``open_bundle`` checks them, then renamed. An existing bundle of that name is replaced only
    by a new one that passed; any other non-empty folder is refused.

    Args:
        programs: in any order; engines have one of preference.
        files: each file that they name, or its bytes.
        values: float16 ``[K]``.
        indices: int64 ``[K]``, strictly increasing inside each layer.
        layers: the matrices in order; their counts add up to ``K``.
        model: ``name, architecture, sha256, vocab_size, hidden_size, layers``.
        mask: ``method, fraction, profile_sha256``; ``entries`` is filled in.
        quantisation: free description of the number formats.
        hidden_blocks: decoder blocks below each of the hidden states that the programs return
            besides log-probabilities; none if they return none.
        mean_blocks: the same of those that are means over the row so far; they come last.
        adapter: what the programs take to move what the head reads.
        text_head: of a head for text that can be learned with the bundle.
        text_frame: the part that goes with it (see ``text_frame``).
        chat: the model's chat template.
        end_ids: tokens with which the model ends a text.

    Raises:
        BundleError: the parts disagree, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_bundle_folder(folder)
    left, work = contextlib.ExitStack(), folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = left.enter_context(workplace(folder)) / "bundle"
        work.mkdir()
        if text_head is not None:
            files = {**files, TEXT: text_frame}
        for name, content in files.items():
            if isinstance(content, bytes):
                (work / name).write_bytes(content)
            else:
                shutil.copyfile(content, work / name)
        tensors: dict[str, NDArray[Any]] = {
            "values": np.ascontiguousarray(values),
            "indices": np.ascontiguousarray(indices),
        }
        (work / VALUES).write_bytes(save_safetensors(tensors))
        (work / TOKENIZER).write_bytes(tokenizer_json)
        names = [*files, VALUES, TOKENIZER]
        if chat is not None:
            (work / CHAT).write_bytes(chat.to_bytes())
            names.append(CHAT)
        parts = {name: _describe(work / name) for name in names}
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "model": dict(model),
            "mask": {**mask, "entries": len(values)},
            "quantisation": dict(quantisation),
            "programs": [dataclasses.asdict(program) for program in programs],
            "bounds": dataclasses.asdict(bounds),
            "hidden_blocks": list(hidden_blocks),
            "mean_blocks": list(mean_blocks),
            "adapter": None if adapter is None else dataclasses.asdict(adapter),
            "text_head": None if text_head is None else dataclasses.asdict(text_head),
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "tokenizer": {
                "sha256": parts[TOKENIZER]["sha256"],
                "pad_id": pad_id,
                "end_ids": list(end_ids),
                "vocab_size": vocabulary_of(parse_tokenizer(tokenizer_json, work / TOKENIZER)),
            },
            "task": None if task is None else dict(task),
            "parts": parts,
        }
        manifest["sha256"] = manifest_digest(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (work / MANIFEST).write_text(text + "\n", encoding="utf-8")
        bundle = open_folder(work)
        if text_head is not None:
            bundle.text_frame()
        sync_tree(work)
        check_bundle_folder(folder)  # minutes may have passed
        replace_folder(work, folder)
    except BundleError as error:
        raise BundleError(str(error).replace(str(work), str(folder))) from error
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        left.close()
    return dataclasses.replace(bundle, path=folder)


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


def with_task(bundle: Bundle, folder: str | Path, task: Mapping[str, Any]) -> Bundle:
    """Write the bundle again into ``folder`` with another task.

    Raises:
        BundleError: the folder cannot be written.
    """
    manifest = bundle.manifest
    with contextlib.ExitStack() as opened:
        names = dict.fromkeys(name for program in bundle.programs for name in program.files)
        text_frame: Path | bytes = b""
        if bundle.text_head is not None:
            text_frame = opened.enter_context(bundle.checked(TEXT))
        return write_bundle(
            folder,
            programs=bundle.programs,
            files={name: opened.enter_context(bundle.checked(name)) for name in names},
            values=bundle.values,
            indices=bundle.indices,
            layers=bundle.layers,
            tokenizer_json=read_part(opened.enter_context(bundle.checked(TOKENIZER))),
            model=manifest["model"],
            mask=manifest["mask"],
            quantisation=manifest["quantisation"],
            bounds=bundle.bounds,
            pad_id=bundle.pad_id,
            hidden_blocks=bundle.hidden_blocks,
            mean_blocks=bundle.mean_blocks,
            adapter=bundle.adapter,
            text_head=bundle.text_head,
            text_frame=text_frame,
            chat=bundle.chat,
            end_ids=bundle.end_ids,
            task=task,
        )


def pack_bundle(folder: str | Path, file: str | Path) -> Path:
    """Check the bundle in ``folder`` and write it as one file (a zip without compression).

    Raises:
        BundleError: damaged, or the file cannot be written.
        SeedtuneError: the file would be one of the bundle's own.
    """
    check_output(Path(file), Path(folder))
    bundle = open_folder(Path(folder))
    return pack_archive(bundle.path, bundle.manifest["parts"], Path(file))


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": file.stat().st_size}

"""The bundle: everything that a device needs to tune and use one model. Schema, version, checks.

A bundle is a folder of these files, or the same files in one ``*.seedtune`` archive:

==================  ===============================================================================
manifest.json       what the parts are and how they fit together; its own ``sha256`` is the
                    SHA-256 of its canonical JSON (keys sorted, no spaces) without that field
program.pte         the ExecuTorch program with the method ``score``
values.safetensors  ``values`` float16 ``[K]`` and ``indices`` int64 ``[K]``: the sensitive
                    weights and the flat row-major (``out * in``) place of each in its own matrix
tokenizer.json      a Hugging Face ``tokenizers`` file
basis.safetensors   directions for the bundle's task (see ``basis``); only where it has some
==================  ===============================================================================

``manifest.layers`` lists the matrices in order, each owning ``values[offset : offset + count]``.
Opening trusts nothing: every byte of every part is hashed, and parts that disagree are refused.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from tokenizers import Tokenizer

from .basis import Basis, parse_basis
from .bundle_archive import pack_archive, unpack_archive
from .bundle_manifest import (
    BASIS,
    DEFAULT_BOUNDS,
    FORMAT,
    MANIFEST,
    PROGRAM,
    TOKENIZER,
    VALUES,
    VERSION,
    Bounds,
    Layer,
    manifest_digest,
    parse_manifest,
)
from .errors import BundleError

__all__ = [
    "DEFAULT_BOUNDS",
    "Bounds",
    "Bundle",
    "Layer",
    "open_bundle",
    "pack_bundle",
    "with_task",
    "write_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle. ``values`` and ``indices`` are read-only arrays."""

    path: Path
    manifest: Mapping[str, Any]
    bounds: Bounds
    layers: tuple[Layer, ...]
    values: NDArray[np.float16]
    """float16 ``[K]``, the exported sensitive weights, layer after layer."""
    indices: NDArray[np.int64]
    """int64 ``[K]``, the flat row-major place of each value in its own matrix."""
    sha256: str
    """Hash of the canonical manifest, hence of every part: the bundle's identity."""
    basis: Basis | None
    """Directions learned for ``task``, where the bundle has them."""
    _tokenizer: Tokenizer

    @property
    def K(self) -> int:
        """Number of sensitive values."""
        return len(self.values)

    @property
    def task(self) -> dict[str, Any] | None:
        """The task specification that was exported with the model, if any."""
        task = self.manifest["task"]
        return None if task is None else dict(task)

    @property
    def pad_id(self) -> int:
        """Token id that pads rows on the right."""
        return int(self.manifest["tokenizer"]["pad_id"])

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model; the tokenizer's may be smaller."""
        return int(self.manifest["model"]["vocab_size"])

    @property
    def hidden_width(self) -> int:
        """Width D of the hidden states, side by side, that the program returns; 0 for none."""
        program = self.manifest["program"]
        states = sum(len(program.get(name, ())) for name in ("hidden_blocks", "mean_blocks"))
        return states * int(self.manifest["model"]["hidden_size"])

    @property
    def program_path(self) -> Path:
        """The ExecuTorch program."""
        return self.path / PROGRAM

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without any truncation or padding that its file may switch on."""
        return self._tokenizer


def open_bundle(path: str | Path, *, cache: Path | None = None) -> Bundle:
    """Open a bundle folder or ``*.seedtune`` file and check all of it.

    Args:
        path: folder, or single-file form (unpacked once into ``cache``, by content).
        cache: where single files are unpacked; by default ``$SEEDTUNE_CACHE`` or
            ``~/.cache/seedtune``.

    Raises:
        BundleError: a part is missing, truncated or altered, the version is newer than this
            reader's, or two parts disagree. The message names the part.
    """
    path = Path(path)
    if path.is_file():
        folder = unpack_archive(path, cache)
        try:
            return _open_folder(folder)
        except BundleError:
            # The cached copy may be what is damaged; the archive then has the good parts.
            shutil.rmtree(folder, ignore_errors=True)
            return _open_folder(unpack_archive(path, cache))
    if not path.is_dir():
        raise BundleError(f"{path}: no such bundle (a folder or a .seedtune file)")
    return _open_folder(path)


def write_bundle(
    folder: str | Path,
    *,
    program: Path | bytes,
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
    basis: Basis | None = None,
    task: Mapping[str, Any] | None,
) -> Bundle:
    """Write a bundle folder so that it appears whole or not at all, and open it.

    The parts are written beside ``folder`` under a temporary name, checked exactly as
    ``open_bundle`` checks them, then renamed. An existing bundle of that name is replaced only
    by a new one that passed; any other non-empty folder is refused.

    Args:
        program: the ``.pte`` file or its bytes.
        values: float16 ``[K]``.
        indices: int64 ``[K]``, strictly increasing inside each layer.
        layers: the matrices in order; their counts add up to ``K``.
        model: ``name, architecture, sha256, vocab_size, hidden_size, layers``.
        mask: ``method, fraction, profile_sha256``; ``entries`` is filled in.
        quantisation: free description of the number formats.
        hidden_blocks: decoder blocks below each of the hidden states that the program returns
            besides log-probabilities; none if it returns none.
        mean_blocks: the same of those that are means over the row so far; they come last.
        basis: directions for ``task``.

    Raises:
        BundleError: the parts disagree, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()
    ):
        raise BundleError(f"{folder}: exists and is not a bundle; choose another output folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        if isinstance(program, bytes):
            (work / PROGRAM).write_bytes(program)
        else:
            shutil.copyfile(program, work / PROGRAM)
        tensors: dict[str, NDArray[Any]] = {
            "values": np.ascontiguousarray(values),
            "indices": np.ascontiguousarray(indices),
        }
        (work / VALUES).write_bytes(save_safetensors(tensors))
        (work / TOKENIZER).write_bytes(tokenizer_json)
        names = [PROGRAM, VALUES, TOKENIZER]
        if basis is not None:
            (work / BASIS).write_bytes(basis.to_bytes())
            names.append(BASIS)
        parts = {name: _describe(work / name) for name in names}
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "model": dict(model),
            "mask": {**mask, "entries": len(values)},
            "quantisation": dict(quantisation),
            "program": {
                "method": "score",
                "bounds": dataclasses.asdict(bounds),
                "hidden_blocks": list(hidden_blocks),
                "mean_blocks": list(mean_blocks),
            },
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "tokenizer": {
                "sha256": parts[TOKENIZER]["sha256"],
                "pad_id": pad_id,
                "vocab_size": _vocabulary(_parse_tokenizer(tokenizer_json, folder)),
            },
            "task": None if task is None else dict(task),
            "parts": parts,
        }
        manifest["sha256"] = manifest_digest(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (work / MANIFEST).write_text(text + "\n", encoding="utf-8")
        bundle = _open_folder(work)
        os.chmod(work, 0o755)  # mkdtemp makes it private
        _sync(work)
        _replace_folder(work, folder)
    except BundleError as error:
        raise BundleError(str(error).replace(str(work), str(folder))) from error
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return dataclasses.replace(bundle, path=folder)


def with_task(
    bundle: Bundle, folder: str | Path, task: Mapping[str, Any], basis: Basis | None
) -> Bundle:
    """Write the bundle again into ``folder`` with another task and its directions.

    Raises:
        BundleError: the folder cannot be written.
    """
    manifest = bundle.manifest
    return write_bundle(
        folder,
        program=bundle.program_path,
        values=bundle.values,
        indices=bundle.indices,
        layers=bundle.layers,
        tokenizer_json=_read(bundle.path / TOKENIZER),
        model=manifest["model"],
        mask=manifest["mask"],
        quantisation=manifest["quantisation"],
        bounds=bundle.bounds,
        pad_id=bundle.pad_id,
        hidden_blocks=manifest["program"].get("hidden_blocks", ()),
        mean_blocks=manifest["program"].get("mean_blocks", ()),
        basis=basis,
        task=task,
    )


def pack_bundle(folder: str | Path, file: str | Path) -> Path:
    """Check the bundle in ``folder`` and write it as one file (a zip without compression)."""
    bundle = _open_folder(Path(folder))
    return pack_archive(bundle.path, Path(file))


def _open_folder(folder: Path) -> Bundle:
    manifest = parse_manifest(_read(folder / MANIFEST), folder)
    for name, part in manifest.parts.items():
        file = folder / name
        try:
            size = file.stat().st_size
            if size != part.bytes:
                raise BundleError(
                    f"{file}: has {size} bytes, the manifest says {part.bytes}: "
                    f"{'truncated' if size < part.bytes else 'altered'}; copy the bundle again"
                )
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
        if digest != part.sha256:
            raise BundleError(f"{file}: altered (its SHA-256 differs); copy the bundle again")
    values, indices = _parse_values(folder / VALUES, manifest.layers)
    tokenizer = _parse_tokenizer(_read(folder / TOKENIZER), folder)
    vocabulary = _vocabulary(tokenizer)
    if vocabulary != manifest.tokenizer_vocabulary:
        raise BundleError(
            f"{folder / TOKENIZER}: has {vocabulary} tokens, the manifest says "
            f"{manifest.tokenizer_vocabulary}"
        )
    if vocabulary > manifest.vocabulary:
        raise BundleError(
            f"{folder / TOKENIZER}: has {vocabulary} tokens, the model only {manifest.vocabulary}; "
            "it is another model's tokenizer"
        )
    return Bundle(
        path=folder,
        manifest=manifest.content,
        bounds=manifest.bounds,
        layers=manifest.layers,
        values=values,
        indices=indices,
        sha256=manifest.sha256,
        basis=None
        if BASIS not in manifest.parts
        else parse_basis(_read(folder / BASIS), folder / BASIS, len(values)),
        _tokenizer=tokenizer,
    )


def _parse_values(
    file: Path, layers: Sequence[Layer]
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """The two arrays of ``values.safetensors``, checked against the layers."""
    try:
        tensors = load_safetensors(_read(file))
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{file}: not a safetensors file ({error})") from error
    if set(tensors) != {"values", "indices"}:
        raise BundleError(f"{file}: must hold 'values' and 'indices', holds {sorted(tensors)}")
    expected = sum(layer.count for layer in layers)
    for name, dtype in (("values", np.float16), ("indices", np.int64)):
        if tensors[name].dtype != dtype:
            raise BundleError(
                f"{file}: {name} is {tensors[name].dtype}, must be {np.dtype(dtype).name}"
            )
        if tensors[name].shape != (expected,):
            raise BundleError(
                f"{file}: {name} has shape {list(tensors[name].shape)}, "
                f"the manifest's layers add up to [{expected}]"
            )
    values, indices = tensors["values"], tensors["indices"]
    for layer in layers:
        own = slice(layer.offset, layer.offset + layer.count)
        wrong = np.flatnonzero(~np.isfinite(values[own]))
        if len(wrong):
            raise BundleError(
                f"{file}: layer {layer.name}: value {wrong[0]} is {values[own][wrong[0]]}; "
                "values must be finite"
            )
        places = indices[own]
        size = layer.shape[0] * layer.shape[1]
        if layer.count and (places[0] < 0 or places[-1] >= size):
            raise BundleError(f"{file}: layer {layer.name}: an index lies outside 0..{size - 1}")
        if layer.count and bool((places[1:] <= places[:-1]).any()):
            raise BundleError(
                f"{file}: layer {layer.name}: indices must increase strictly (sorted, none twice)"
            )
    values.setflags(write=False)
    indices.setflags(write=False)
    return values, indices


def _parse_tokenizer(data: bytes, folder: Path) -> Tokenizer:
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise BundleError(f"{folder / TOKENIZER}: not a tokenizer file ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _vocabulary(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: ids may have holes, so counting tokens is not enough."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from error


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": file.stat().st_size}


def _sync(folder: Path) -> None:
    """Put the files on the disk before the rename makes them visible."""
    for file in (*folder.iterdir(), folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename ``new`` to ``folder``; a bundle already there survives any failure."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    os.rename(folder, old)  # onto the empty folder that mkdtemp made
    try:
        os.rename(new, folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)

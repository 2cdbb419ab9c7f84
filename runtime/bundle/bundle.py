"""The bundle: everything that a device needs to tune and use one model. Schema, version, checks.

A bundle is a folder of these files, or the same files in one ``*.seedtune`` archive:

==================  ===============================================================================
manifest.json       what the parts are and how they fit together; its own ``sha256`` is the
                    SHA-256 of its canonical JSON (keys sorted, no spaces) without that field
program.pte, ...    programs, each the whole model for one kind of engine, with the method ``score``
                    and, if it writes, ``generate``; and files that they share
values.safetensors  ``values`` float16 ``[K]`` and ``indices`` int64 ``[K]``: the sensitive
                    weights and the flat row-major (``out * in``) place of each in its own matrix
tokenizer.json      a Hugging Face ``tokenizers`` file
chat.json           the model's chat template (see ``parts``); only where it has one
text.safetensors    what a head for text is learned in (see ``text_head``), likewise
terms.safetensors   what terms of the upper blocks are learned in (see ``terms``), likewise
==================  ===============================================================================

``manifest.layers`` lists the matrices in order, each owning ``values[offset : offset + count]``.

**A bundle is code.** Opening hashes every byte of every part and refuses parts that disagree, so
that damage never passes. But whoever wrote the bundle wrote the hashes too, and a program made to
harm can do so in the library that runs it: take bundles from whom you trust, as you do programs,
and open them by the ``sha256`` that you have from there by another way.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import BundleError
from ..files import clean_up
from .archive import local_bundle, unpack_archive
from .checked_file import Stamp, check_digest, check_file, check_size, open_checked
from .manifest import (
    CHAT,
    MANIFEST,
    TERMS,
    TEXT,
    TOKENIZER,
    VALUES,
    Manifest,
    Part,
    check_identity,
    parse_manifest,
)
from .parts import ChatPart, parse_chat, parse_tokenizer, parse_values, read_part, vocabulary_of
from .program import Generation, Program
from .progress import Progress, ProgressFailed, counting, hash_pieces, part_of
from .terms import TermsPart, load_terms
from .text_head import TextFrame, load_text_frame


@dataclass(frozen=True)
class Bundle(Manifest):
    """An opened bundle: its manifest, and the parts, checked against it. ``values`` and ``indices``
    are read-only arrays."""

    path: Path
    values: NDArray[np.float16]
    """float16 ``[K]``, the exported sensitive weights, layer after layer."""
    indices: NDArray[np.int64]
    """int64 ``[K]``, the flat row-major place of each value in its own matrix."""
    chat: ChatPart | None
    """The model's chat template, where it has one."""
    _tokenizer: Tokenizer
    _stamps: Mapping[str, Stamp | None] = field(compare=False)
    """How to recognise each file later that is not read at once."""

    @property
    def K(self) -> int:
        """Number of sensitive values."""
        return len(self.values)

    @property
    def task(self) -> dict[str, Any] | None:
        """The task specification that was exported with the model, if any."""
        task = self.manifest["task"]
        return None if task is None else dict(task)

    def blocks(self) -> NDArray[np.int64] | None:
        """Decoder block of each value, int64 ``[K]``, from the names of the matrices
        (``model.layers.7.mlp.up_proj``); None if they do not say, or not in order."""
        numbers = [re.search(r"\.(\d{1,4})\.", layer.name) for layer in self.layers]
        if not all(numbers):
            return None
        blocks = np.array([int(found[1]) for found in numbers if found], dtype=np.int64)
        if (np.diff(blocks) < 0).any():
            return None
        return np.repeat(blocks, [layer.count for layer in self.layers])

    @property
    def pad_id(self) -> int:
        """Token id that pads rows on the right."""
        return int(self.manifest["tokenizer"]["pad_id"])

    @property
    def generation(self) -> Generation | None:
        """What the first program that writes takes; None if all only score."""
        found = [program.generation for program in self.programs]
        return next((each for each in found if each is not None), None)

    @property
    def prefix_cache(self) -> tuple[tuple[int, int], ...]:
        """``(KV, d)`` of each block's keys and values of a prefix; empty where none is read."""
        return next((each.prefix_cache for each in self.programs if each.prefix_cache), ())

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens with which the model ends a text."""
        return tuple(self.manifest["tokenizer"]["end_ids"])

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model; the tokenizer's may be smaller."""
        return int(self.manifest["model"]["vocab_size"])

    @property
    def hidden_width(self) -> int:
        """Width D of the hidden states, side by side, that the program returns; 0 for none."""
        states = len(self.hidden_blocks) + len(self.mean_blocks)
        return states * int(self.manifest["model"]["hidden_size"])

    @property
    def adapter_shape(self) -> tuple[int, int] | None:
        """``(D, S)`` of the adapter that programs take; None if they take none."""
        if self.adapter is None:
            return None
        states = len(self.adapter.blocks) * int(self.manifest["model"]["hidden_size"])
        return self.adapter.width, states

    def text_frame(self) -> TextFrame:
        """What a head for text is learned in, read anew, where ``text_head`` says that it is there.

        Raises:
            BundleError: it is another file since the bundle was opened, or holds other tensors.
        """
        assert self.text_head is not None and self.adapter_shape is not None
        with self.checked(TEXT) as file:
            return load_text_frame(file, self.path / TEXT, self.text_head, self.adapter_shape)

    @property
    def terms_shapes(self) -> tuple[tuple[int, int], ...]:
        """Of each term that programs take; none if they take none."""
        if self.terms is None or self.adapter is None:
            return ()
        return tuple(self.terms.shapes(self.adapter.width))

    def terms_part(self) -> TermsPart:
        """What terms are learned in, read anew, where ``terms`` says that it is there.

        Raises:
            BundleError: it is another file since the bundle was opened, or holds other tensors.
        """
        assert self.terms is not None and self.adapter is not None
        sizes = self.terms, self.adapter.width, self.vocab_size
        with self.checked(TERMS) as file:
            return load_terms(file, self.path / TERMS, *sizes)

    @property
    def program_path(self) -> Path:
        """The file of the first program."""
        return self.path / self.programs[0].files[0]

    def program(self, format: str) -> Program | None:
        """The program of a format, if there is one."""
        return next((each for each in self.programs if each.format == format), None)

    def checked(self, name: str) -> AbstractContextManager[Path]:
        """A name by which to open a part; entering proves it to be the file that was hashed.

        Raises:
            BundleError: (entering) there is another file since the bundle was opened.
        """
        return open_checked(self.path / name, self.parts[name], self._stamps.get(name))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without any truncation or padding that its file may switch on."""
        return self._tokenizer


def open_bundle(
    path: str | Path,
    *,
    cache: Path | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Open a bundle folder or ``*.seedtune`` file and check all of it.

    Args:
        path: folder, or single-file form (unpacked once into ``cache``, by content), or the place
            of either on the Hugging Face hub, ``hf://owner/name[@revision][/path]``.
        cache: where single files are unpacked; by default ``$SEEDTUNE_CACHE`` or
            ``~/.cache/seedtune``.
        sha256: the bundle's own, as ``Bundle.sha256`` and ``seedtune inspect`` give it, if only
            that one may be opened. Nothing of another is read but its manifest.
        progress: called in this thread with the bytes checked so far and how many there are to
            check, at first with 0 and after each MiB at the latest. Those of a single file are
            checked twice, packed and unpacked. Counting begins anew only where what was unpacked
            before turns out damaged. What it raises ends the opening and reaches the caller.

    Raises:
        BundleError: another bundle than ``sha256`` names, a part is missing, truncated or altered,
            the version is another than this reader's, or two parts disagree. The message names the
            part.
        DownloadError: the hub does not deliver it.
    """
    try:
        return _open(local_bundle(path, sha256), cache, sha256, progress)
    except ProgressFailed as failed:
        raise failed.reason from None


def _open(path: Path, cache: Path | None, sha256: str | None, progress: Progress | None) -> Bundle:
    if not os.path.exists(path):  # Path's own raises where a folder above cannot be read
        clean_up(path.parent)  # puts back what a process killed in replacing it moved away
    if os.path.isfile(path):
        first, second = (part_of(progress, which, 2) for which in range(2))
        folder = unpack_archive(path, cache, sha256=sha256, progress=first)
        try:
            return open_folder(folder, sha256, second)
        except BundleError:
            # The cached copy may be what is damaged; the archive then has the good parts.
            shutil.rmtree(folder, ignore_errors=True)
            folder = unpack_archive(path, cache, sha256=sha256, progress=first)
            return open_folder(folder, sha256, second)
    if not os.path.isdir(path):
        raise BundleError(f"{path}: no such bundle (a folder or a .seedtune file)")
    return open_folder(path, sha256, progress)


def open_folder(
    folder: Path, sha256: str | None = None, progress: Progress | None = None
) -> Bundle:
    manifest = parse_manifest(read_part(folder / MANIFEST), folder)
    check_identity(manifest.sha256, sha256, folder)
    parts = manifest.parts
    files = {name for program in manifest.programs for name in program.files}
    files |= {TEXT, TERMS} & set(parts)
    checked = counting(progress, manifest.bytes)
    stamps = {name: check_file(folder / name, parts[name], checked) for name in files}
    # Read once, so that what is parsed is what was hashed.
    data = {name: _read(folder / name, parts[name], checked) for name in parts if name not in files}
    values, indices = parse_values(data[VALUES], folder / VALUES, manifest.layers)
    tokenizer = parse_tokenizer(data[TOKENIZER], folder / TOKENIZER)
    content, vocabulary = manifest.manifest, vocabulary_of(tokenizer)
    said, most = content["tokenizer"]["vocab_size"], content["model"]["vocab_size"]
    if vocabulary != said:
        raise BundleError(
            f"{folder / TOKENIZER}: has {vocabulary} tokens, the manifest says {said}"
        )
    if vocabulary > most:
        raise BundleError(
            f"{folder / TOKENIZER}: has {vocabulary} tokens, the model only {most}; "
            "it is another model's tokenizer"
        )
    return Bundle(
        **vars(manifest),
        path=folder,
        values=values,
        indices=indices,
        chat=None if CHAT not in data else parse_chat(data[CHAT], folder / CHAT),
        _tokenizer=tokenizer,
        _stamps=stamps,
    )


def _read(file: Path, part: Part, checked: Callable[[int], None]) -> bytes:
    try:
        check_size(file, file.stat().st_size, part)
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
    check_digest(file, hash_pieces(BytesIO(data), checked), part)
    return data

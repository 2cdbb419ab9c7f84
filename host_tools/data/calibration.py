"""Calibration text as token sequences of one length, and a held-out slice for perplexity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from seedtune.runtime.errors import DataError
from seedtune.runtime.hub import local_file

from .fetch import fetch


@dataclass(frozen=True)
class Calibration:
    """Sequences cut from one text.

    ``profile`` int64 [n, length] and ``held_out`` int64 [m, length] share no document.
    ``sha256`` identifies the text of both together, before tokenisation.
    """

    profile: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    sha256: str


def load_calibration(
    tokenizer: Any,
    *,
    sequences: int = 32,
    length: int = 128,
    held_out: int = 16,
    text: str | Path | None = None,
) -> Calibration:
    """Cuts ``sequences + held_out`` sequences of ``length`` tokens from the start of a text.

    Args:
        tokenizer: a fast transformers tokenizer.
        text: a ``.txt`` file (documents are separated by blank lines) or a ``.jsonl`` file (one
            document per row, in the field ``passage`` or ``text``); None takes Wikipedia passages.

    Documents are joined by the end-of-text token, as in pre-training, and cut without overlap.
    The two slices are filled from different documents, so no held-out token was seen as context.

    Raises:
        DataError: unreadable or empty text, or too little of it; the message says how much.
    """
    if sequences < 1 or held_out < 0 or length < 2:
        raise DataError(
            f"calibration needs sequences >= 1, held_out >= 0 and length >= 2, "
            f"not {sequences}, {held_out}, {length}"
        )
    path = fetch("wikipedia-passages") if text is None else local_file(text)
    documents = iter(read_documents(path))
    used = hashlib.sha256()
    slices = []
    for wanted in (sequences, held_out):
        stream: list[int] = []
        while len(stream) < wanted * length:
            document = next(documents, None)
            if document is None:
                raise DataError(
                    f"{path}: too little text for {sequences} + {held_out} sequences of {length} "
                    f"tokens; give more text or ask for fewer or shorter sequences"
                )
            used.update(document.encode() + b"\0")
            ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
            stream += [*ids, *_separator(tokenizer)]
        slices.append(np.array(stream[: wanted * length], np.int64).reshape(wanted, length))
    return Calibration(slices[0], slices[1], used.hexdigest())


def read_documents(path: Path) -> list[str]:
    """Documents of a ``.txt`` or ``.jsonl`` file without empty ones or repeats, in file order.

    Raises:
        DataError: naming the file, and the row where one is at fault.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        found = [
            _text_of_row(line, f"{path}:{number}")
            for number, line in enumerate(content.split("\n"), 1)
            if line.strip()
        ]
    elif path.suffix == ".txt":
        found = content.replace("\r\n", "\n").split("\n\n")
    else:
        raise DataError(f"{path}: calibration text must be a .txt or a .jsonl file")
    # Passages repeat (one per question in BoolQ); a repeat would count its gradients twice and
    # could stand on both sides of the held-out cut.
    documents = list(dict.fromkeys(document.strip() for document in found))
    documents = [document for document in documents if document]
    if not documents:
        raise DataError(f"{path}: holds no text")
    return documents


def _text_of_row(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg}") from error
    for field in ("passage", "text"):
        if isinstance(row, dict) and isinstance(row.get(field), str):
            return str(row[field])
    raise DataError(f"{where}: needs a text field named passage or text")


def _separator(tokenizer: Any) -> list[int]:
    token = tokenizer.eos_token_id
    return [] if token is None else [int(token)]

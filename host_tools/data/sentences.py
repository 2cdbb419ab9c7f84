"""Generic sentences, to put into a task's prompt."""

from __future__ import annotations

import re
from pathlib import Path

from seedtune.runtime.errors import DataError

from .calibration import read_documents
from .fetch import fetch

_SHORTEST, _LONGEST = 20, 300


def load_sentences(text: str | Path | None = None, documents: int = 2000) -> list[str]:
    """Sentences of 20 to 300 characters from the first documents of a text.

    Args:
        text: as of ``calibration.load_calibration``; None takes Wikipedia passages.

    Raises:
        DataError: unreadable text, or no such sentence.
    """
    path = fetch("wikipedia-passages") if text is None else Path(text)
    found = [
        sentence.strip()
        for document in read_documents(path)[:documents]
        for sentence in re.split(r"(?<=[.!?]) +|\n", document)
        if _SHORTEST < len(sentence.strip()) < _LONGEST
    ]
    if not found:
        raise DataError(
            f"{path}: holds no sentence of {_SHORTEST} to {_LONGEST} characters; give other text"
        )
    return found

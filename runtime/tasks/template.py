"""Prompt templates, and shortening a text by a number of tokens."""

import string
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from ..errors import DataError
from .field_text import field_text
from .tokenising import tokenise


class Template:
    """Text with ``{field}`` places; ``{{`` and ``}}`` stand for braces.

    Raises:
        DataError: the text is not such a template.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        names: list[str] = []
        try:
            for _, name, format_spec, conversion in string.Formatter().parse(text):
                if name is None:
                    continue
                if not name.isidentifier() or format_spec or conversion:
                    raise ValueError(f"{name[:40]!r} in braces is not a plain field name")
                names.append(name)
        except ValueError as error:
            raise DataError(f"task: template {text[:60]!r}: {error}") from error
        self.names: tuple[str, ...] = tuple(dict.fromkeys(names))

    def fields_of(self, row: Mapping[str, Any], where: str) -> dict[str, str]:
        """The text of each field that the template names.

        Raises:
            DataError: ``row`` lacks one of them.
        """
        return {name: field_text(row, name, where) for name in self.names}

    def render(self, fields: Mapping[str, str]) -> str:
        """The text with every field in its place."""
        return self.text.format_map(fields)


def shorten(text: str, tokens: int, tokenizer: Tokenizer) -> str:
    """Drop at least one character and about ``tokens`` tokens from the end of ``text``.

    The count is about right only, since the text is tokenised alone here; the caller counts
    again and repeats.
    """
    offsets = tokenise(tokenizer, text, special=False).offsets
    if tokens >= len(offsets):
        return ""
    end = min(offsets[-tokens][0], len(text) - 1)
    return text[:end].rstrip()

"""What every method of ``bench senders`` tells: how it does on later messages and on other text."""

from __future__ import annotations

from typing import Any

from seedtune.runtime.bundle import DEFAULT_BOUNDS

from ..measuring.perplexity import text_batches
from ..methods.float_task import FloatTask
from .next_words import Score, measure, message_batches


def judged(score: Score, cell: FloatTask) -> dict[str, Any]:
    """``test`` and ``other`` (see ``next_words.measure``) of ``cell``'s test rows and of text that
    has nothing to do with them."""
    assert cell.generic_text is not None
    return {
        "test": measure(score, message_batches(cell.task, cell.test, cell.bounds)),
        "other": measure(score, text_batches(cell.generic_text, DEFAULT_BOUNDS)),
    }

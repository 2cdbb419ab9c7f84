"""What ``seedtune tune`` found at its end, as its run's folder keeps it for pages and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import JournalError, warn
from seedtune.runtime.files import replace_file
from seedtune.runtime.journal.file import Journal
from seedtune.runtime.journal.history import History
from seedtune.runtime.journal.metrics import LATEST
from seedtune.runtime.journal.run_folder import OUTCOME_FILE
from seedtune.runtime.schema import SHA256, ListOf, MapOf, Maybe, Real, Whole, check, parse_json

from ..commands.output import plain

_FIGURES = MapOf(Maybe((int, float)))
_SAID = {"answer": Maybe(str), "scores": _FIGURES}
_OUTCOME = {
    "steps": Whole(),
    "bundle": {"sha256": SHA256, "model": Maybe(str)},
    "before": Maybe(_FIGURES),
    "after": Maybe(_FIGURES),
    "counts": Maybe(MapOf(MapOf(Whole()))),
    "most_frequent": Maybe({"answer": str, "share": Real(0, 1)}),
    "judged_rows": Maybe(Whole()),
    "choosing_rows": Maybe(Whole()),
    "message": Maybe(str),
    "stop_reason": Maybe(str),
    "forwards": Maybe(Whole()),
    "seconds": Maybe(Real(0)),
    "twice_as_many": Maybe(str),
    "peak_rss_bytes": Maybe(Whole()),
    "values_sha256": Maybe(SHA256),
    "samples": Maybe(ListOf({"prompt": str, "right": str, "before": str, "after": str})),
    "remembered": Maybe(
        ListOf({"text": str, "words": Whole(), "learned": Maybe(Whole(0, LATEST))})
    ),
    "rows": ListOf({"fields": MapOf(str), "right": Maybe(str), "before": _SAID, "after": _SAID}),
}
"""What is read of it; further fields are for others. A figure of null was not finite."""


def read_outcome(run: Path, journal: Journal, history: History) -> dict[str, Any]:
    """Fields as ``_OUTCOME`` says; none of a run that something else tuned, or that went on since.

    Raises:
        JournalError: the file cannot be read, or holds something else.
    """
    file = run / OUTCOME_FILE
    try:
        outcome: dict[str, Any] = parse_json(file.read_bytes())
        check(outcome, _OUTCOME)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise JournalError(f"{file}: cannot be read ({error}); tune again or delete it") from error
    of = outcome["bundle"]["sha256"], outcome["steps"]
    if of != (journal.header.bundle_sha256, history.steps):
        warn(f"{file}: is of step {of[1]}, the run of step {history.steps}; tune again to see it")
        return {}
    return outcome


def write_outcome(run: Path, content: dict[str, Any]) -> None:
    """Keep it; it holds texts of rows: for the owner's eyes alone, like the journal beside it.

    Raises:
        JournalError: the file cannot be written.
    """
    file = run / OUTCOME_FILE
    try:
        text = json.dumps(plain(content), ensure_ascii=False, indent=1)
        replace_file(file, text.encode("utf-8", "replace"), private=True)
    except OSError as error:
        raise JournalError(f"{file}: cannot be written ({error.strerror})") from error

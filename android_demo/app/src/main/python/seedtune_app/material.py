"""What the user gives to learn from: messages with labels, or a text. Kept in one JSON file each.

Each is turned into a task and its rows. Every fourth row of a kind is held out: it is never learned
from, and says what the others taught.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, ClassVar

from seedtune.runtime.errors import DataError
from seedtune.runtime.files import replace_file

Row = dict[str, str]

HELD_OUT = 4
"""One row in so many is held out."""
LEAST_ROWS = 8
MOST_ROWS = 512
MOST_HELD_OUT = 64
"""More take longer on a phone than they tell."""
_LONGEST = 2000
"""Characters of a message; the task shortens what its program cannot take."""
_PIECE = 400
"""Characters from which a piece of a text ends at the next line."""


class Material:
    """The rows of one task, on the disk."""

    file: str
    empty: ClassVar[dict[str, Any]]
    """What stands in the file before anything is given; never changed."""
    kinds: int
    """So many there must be, at least."""
    too_few: str
    """What to give more of, with a place for how many rows there are."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.file
        self._data = self.empty
        if self._path.exists():
            try:
                self._data = json.loads(self._path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"what you gave cannot be read ({error}); wipe it and begin anew"
                ) from error

    def _keep(self, **changes: Any) -> None:
        """Write first, then take it over: a full disk leaves both as they were."""
        data = {**self._data, **changes}
        replace_file(self._path, json.dumps(data, ensure_ascii=False).encode(), private=True)
        self._data = data

    def spec(self) -> dict[str, Any]:
        """Task specification."""
        raise NotImplementedError

    def rows(self) -> list[Row]:
        """All rows that can be learned from."""
        raise NotImplementedError

    def split(self) -> tuple[list[Row], list[Row]]:
        """Rows to learn from, and held-out ones.

        Raises:
            DataError: too few; says what is wanted.
        """
        rows = self.rows()
        # By kind: of kinds that were given by turns, all would else be of one.
        by_kind = sorted(range(len(rows)), key=lambda place: str(rows[place].get("label")))
        judging = set(by_kind[HELD_OUT - 1 :: HELD_OUT])
        train = [row for place, row in enumerate(rows) if place not in judging]
        held_out = [rows[place] for place in sorted(judging)]
        if len(rows) < LEAST_ROWS or len({row.get("label") for row in train}) < self.kinds:
            raise DataError(self.too_few.format(len(rows)))
        return train[:MOST_ROWS], held_out[:MOST_HELD_OUT]

    def settings(self, rows: int) -> dict[str, Any]:
        """Of a run over so many rows, where the usual ones do not suit a phone."""
        raise NotImplementedError

    def key(self, bundle: str) -> str:
        """Names a run: which bundle (its SHA-256) learns what, from what."""
        text = json.dumps([bundle, self.spec(), *self.split()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Messages(Material):
    """Messages to sort: each has a text and, once tapped, a label."""

    file = "messages.json"
    empty: ClassVar = {"labels": [], "messages": []}
    kinds = 2
    too_few = "tap a kind for 8 messages or more, of two kinds at least; {} have one"

    @property
    def labels(self) -> list[str]:
        return list(self._data["labels"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self._data["messages"])

    def name_labels(self, names: list[str]) -> None:
        """Say what kinds there are; messages of kinds that are gone lose their label.

        Raises:
            DataError: fewer than two, more than eight, or two alike.
        """
        labels = [" ".join(name.split())[:30] for name in names if name.strip()]
        if not 2 <= len(labels) <= 8:
            raise DataError(f"name 2 to 8 kinds of messages; these are {len(labels)}")
        if len({label.lower() for label in labels}) < len(labels):
            raise DataError("two kinds have one name; change one of them")
        kept = [
            {**each, "label": each["label"] if each["label"] in labels else None}
            for each in self.messages
        ]
        self._keep(labels=labels, messages=kept)

    def add(self, text: str) -> int:
        """Take each line that is not there yet as a message; how many were new."""
        known = {each["text"] for each in self.messages}
        new = dict.fromkeys(line.strip()[:_LONGEST] for line in text.splitlines() if line.strip())
        found = [{"text": line, "label": None} for line in new if line not in known]
        self._keep(messages=[*self.messages, *found])
        return len(found)

    def tap(self, place: int, label: str | None) -> None:
        """Give message number ``place`` a label, or take it away."""
        messages = self.messages
        if not 0 <= place < len(messages) or label not in (None, *self.labels):
            raise DataError("that message or kind is gone; choose again")
        messages[place] = {**messages[place], "label": label}
        self._keep(messages=messages)

    def spec(self) -> dict[str, Any]:
        words = {label: f" {label.lower()}" for label in self.labels}
        choice = {"kind": "classification", "template": "{text}\nKind:", "label_field": "label"}
        return choice | {"verbalisers": words}

    def settings(self, rows: int) -> dict[str, Any]:
        """Small steps of few messages, judged often enough for a chart."""
        size = 4 if rows <= 128 else 16
        return {"batch_size": size, "eval_every": max(1, rows // size // 6)}

    def rows(self) -> list[Row]:
        return [dict(each) for each in self.messages if each["label"]]


class Writing(Material):
    """A text of the user's, in pieces of some lines."""

    file = "writing.json"
    empty: ClassVar = {"text": ""}
    kinds = 1
    too_few = "give more of what you wrote: 8 pages or so; it makes {} pieces, 8 are the least"

    def add(self, text: str) -> None:
        """Take more text, if it is not there yet."""
        if text.strip() not in self._data["text"]:
            self._keep(text=f"{self._data['text']}\n{text.strip()}".strip())

    def drop(self, text: str) -> None:
        """Give up the pieces that hold ``text``, whatever its case, or stand in it."""
        wanted = " ".join(text.casefold().split())
        pieces = [(piece, " ".join(piece.casefold().split())) for piece in self._pieces()]
        kept = [piece for piece, own in pieces if wanted not in own and own not in wanted]
        self._keep(text="\n".join(kept))

    def spec(self) -> dict[str, Any]:
        return {"kind": "completion", "template": "", "completion_field": "text"}

    def settings(self, rows: int) -> dict[str, Any]:
        """Judged often enough for a chart."""
        return {"batch_size": min(16, rows), "eval_every": max(2, rows // 32)}

    def rows(self) -> list[Row]:
        return [{"text": piece} for piece in self._pieces() if len(piece.split()) > 3]

    def _pieces(self) -> list[str]:
        pieces = [""]
        for line in re.split(r"\n+|(?<=[.!?]) (?=[A-Z])", self._data["text"]):
            if len(pieces[-1]) > _PIECE:
                pieces.append("")
            pieces[-1] = f"{pieces[-1]}\n{line}".strip()
        return pieces

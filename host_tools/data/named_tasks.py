"""Named tasks: public data, split for training and testing, with the prompt that MeZO uses.

Prompts follow MeZO (Malladi et al., arXiv 2305.17333, appendix E); it has none for text messages.
The loaders return rows in the order of the published file, with its defects mended. Labels are
text: the published class numbers, or a word where the file has none.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from seedtune.runtime.errors import DataError

from .fetch import fetch

Row = dict[str, Any]

SCORE_MARGIN = 0.5
"""Movie sentences nearer to neutral than this (scale -4 to 4) are left out: raters disagree."""

CHAT_SENDER = "720840be-e522-47ba-9e9f-143f66372673"
"""13 580 messages in 347 conversations of one month. Two accounts wrote more, but the first reads
as if several people used it, and the second spread over 1 528 conversations."""


@dataclass(frozen=True)
class TaskData:
    """Rows to train on, rows to test on (never the same text in both), and the task specification.

    ``spec`` is what ``seedtune.runtime.tasks.task_for`` takes.
    """

    name: str
    train: list[Row]
    test: list[Row]
    spec: dict[str, Any]


def load_task(name: str) -> TaskData:
    """Fetches and splits the data of a named task; see ``TASKS`` for the names.

    Raises:
        DataError: unknown name.
        DownloadError: data that cannot be fetched.
    """
    loader = TASKS.get(name)
    if loader is None:
        raise DataError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return loader()


def split(rows: list[Row], test_rows: int, text_fields: list[str]) -> tuple[list[Row], list[Row]]:
    """Draws ``test_rows`` rows for testing and returns (train, test), each in file order.

    The draw orders rows by a hash of their number, so that it is the same everywhere and for ever.
    Training rows whose text also stands in a test row are dropped.
    """
    drawn = sorted(range(len(rows)), key=lambda i: hashlib.sha256(f"test {i}".encode()).digest())
    chosen = set(drawn[:test_rows])
    test = [row for number, row in enumerate(rows) if number in chosen]

    def key(row: Row) -> tuple[str, ...]:
        return tuple(normalised(row[field]) for field in text_fields)

    tested = {key(row) for row in test}
    train = [
        row for number, row in enumerate(rows) if number not in chosen and key(row) not in tested
    ]
    return train, test


def balanced(rows: list[Row]) -> list[Row]:
    """As many rows of every label as the rarest has, the first ones, in their order.

    Only 13 % of text messages are spam: who never says spam would be right at 87 %.
    """
    counts = Counter(row["label"] for row in rows)
    left = dict.fromkeys(counts, min(counts.values()))
    kept = []
    for row in rows:
        if left[row["label"]]:
            left[row["label"]] -= 1
            kept.append(row)
    return kept


def _classification(template: str, verbalisers: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": "classification",
        "template": template,
        "label_field": "label",
        "verbalisers": verbalisers,
    }


def _sst2() -> TaskData:
    spec = _classification("{text} It was", {"0": " terrible", "1": " great"})
    return TaskData("sst2", movie_sentiment(), sst2_validation(), spec)


def _sst2_shown() -> TaskData:
    """With two sentences of our own, which no data set has, in front of every prompt."""
    shown = [
        {"text": "a joy from start to finish .", "label": "1"},
        {"text": "flat , lifeless and far too long .", "label": "0"},
    ]
    plain = _sst2()
    return replace(plain, name="sst2-shown", spec={**plain.spec, "demonstrations": shown})


def _sms_spam() -> TaskData:
    # 447 messages repeat another one; split() keeps repeats of test messages out of training.
    train, test = (balanced(part) for part in split(sms_messages(), 1000, ["text"]))
    spec = _classification(
        "Message: {text}\nIs this message spam? Yes or No?\n", {"ham": "No", "spam": "Yes"}
    )
    return TaskData("sms-spam", train, test, spec)


def _chat() -> TaskData:
    rows = chat_replies()
    # The last fifth in time: a device too is judged by what is written after it learnt.
    first = rows[-len(rows) // 5]["chat"]
    test = [row for row in rows if row["chat"] >= first]
    tested = {(row["before"], row["reply"]) for row in test}
    train = [
        row for row in rows if row["chat"] < first and (row["before"], row["reply"]) not in tested
    ]
    # Without an end: the results are of the messages' own tokens.
    spec = {
        "kind": "completion",
        "template": "{before}\n",
        "completion_field": "reply",
        "end": False,
    }
    return TaskData("chat", train, test, spec)


TASKS: dict[str, Callable[[], TaskData]] = {
    "sst2": _sst2,
    "sst2-shown": _sst2_shown,
    "sms-spam": _sms_spam,
    "chat": _chat,
}


def movie_sentences() -> list[Row]:
    """All 10 605 rated sentences: ``text`` and ``score``, the mean of 20 ratings from -4 to 4."""
    file = fetch("movie-reviews")
    rows = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if number == 1:
            continue  # header
        cells = line.split("\t")
        try:
            rows.append({"text": cells[2].strip(), "score": float(cells[1])})
        except (IndexError, ValueError) as error:
            raise DataError(f"{file}:{number}: expected id, score and text in columns") from error
    return rows


def movie_sentiment() -> list[Row]:
    """Movie sentences as SST-2 training rows (``text``, ``label`` 0 or 1), free of test sentences.

    732 of the 872 SST-2 validation sentences stand in the movie file too, spelt with other case
    and spacing; they are removed, so that 9 353 rows are left, 4 622 of them positive.
    """
    tested = {normalised(row["text"]) for row in sst2_validation()}
    return [
        {"text": row["text"], "label": "1" if row["score"] > 0 else "0"}
        for row in movie_sentences()
        if abs(row["score"]) >= SCORE_MARGIN and normalised(row["text"]) not in tested
    ]


def sst2_validation() -> list[Row]:
    """The 872 SST-2 validation sentences (``text``, ``label`` 0 or 1), 444 positive."""
    import pyarrow as pa

    file = fetch("sst2")
    try:
        with pa.ipc.open_stream(file.read_bytes()) as stream:
            rows = stream.read_all().to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: not an Arrow stream: {error}") from error
    return [{"text": row["sentence"].strip(), "label": str(row["label"])} for row in rows]


def sms_messages() -> list[Row]:
    """5 574 text messages (``text``, ``label`` ham or spam), 747 of them spam.

    Eight rows of the published file swallowed the messages after them through an unclosed quote.
    The swallowed ones keep their own ``ham<TAB>`` or ``spam<TAB>`` at the start of a line, at which
    they are cut apart again.
    """
    content = _text(fetch("sms-spam"))
    rows = []
    for row in csv.DictReader(io.StringIO(content, newline="")):
        first, *swallowed = re.split(r"\n(ham|spam)\t", row["text"])
        rows.append({"text": first.strip(), "label": "spam" if row["spam"] == "1" else "ham"})
        rows += [
            {"text": text.strip(), "label": label}
            for label, text in zip(swallowed[::2], swallowed[1::2], strict=True)
        ]
    return rows


def chat_replies(sender: str = CHAT_SENDER) -> list[Row]:
    """What ``sender`` wrote in conversations, in order of time: 6 752 rows by default.

    One row a turn: ``before``, the other's last message, and ``reply``, the sender's messages up
    to the other's next one, a line each; ``chat`` numbers the conversation. Turns that open a
    conversation answer nothing and are left out.
    """
    file = fetch("chitchat")
    try:
        chats = sorted(json.loads(_text(file)).values(), key=lambda chat: str(chat["start"]))
        rows = []
        for number, chat in enumerate(chats):
            turns = [turn for turn in chat["messages"] if turn]
            for before, turn in pairwise(turns):
                if turn[0]["sender"] == sender != before[0]["sender"]:
                    reply = "\n".join(said["text"].strip() for said in turn).strip()
                    row = {"before": before[-1]["text"].strip(), "reply": reply, "chat": number}
                    rows += [row] if row["before"] and reply else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not chats of turns with sender and text: {error}") from error
    return rows


def normalised(text: str) -> str:
    """Lower case, letters and digits only: equal for sentences that differ in typography alone."""
    return "".join(character for character in text.lower() if character.isalnum())


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8")

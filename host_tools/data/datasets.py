"""Public labelled data as rows, with the defects of the published files mended.

Every loader returns ``list[dict]`` in the order of the file. Labels are text: the published class
numbers, or a word where the file has none.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
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
    return [
        {"text": row["sentence"].strip(), "label": str(row["label"])}
        for row in _arrow(fetch("sst2"))
    ]


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


def cb_validation() -> list[Row]:
    """56 pairs (``premise``, ``hypothesis``, ``label``).

    Labels: 0 entailment, 1 contradiction, 2 neutral.
    """
    return [
        {
            "premise": row["premise"].strip(),
            "hypothesis": row["hypothesis"].strip(),
            "label": str(row["label"]),
        }
        for row in _arrow(fetch("cb"))
    ]


def copa_validation() -> list[Row]:
    """100 questions (``prompt``, ``choice1``, ``choice2``, ``label`` 0 or 1).

    As in MeZO: the premise without its full stop, then "so" or "because", then a choice that goes
    on in lower case unless its first word is "I".
    """
    conjunctions = {"effect": "so", "cause": "because"}
    return [
        {
            "prompt": f"{row['premise'].strip().removesuffix('.')} {conjunctions[row['question']]}",
            "choice1": _lower_first_word(row["choice1"].strip()),
            "choice2": _lower_first_word(row["choice2"].strip()),
            "label": str(row["label"]),
        }
        for row in _arrow(fetch("copa"))
    ]


def boolq_validation() -> list[Row]:
    """3 270 questions (``passage``, ``question``, ``label`` 1 for yes)."""
    return [
        _boolq_row(row["passage"], row["question"], yes=row["answer"])
        for row in _arrow(fetch("boolq"))
    ]


def boolq_train() -> list[Row]:
    """9 427 questions in the form of ``boolq_validation``.

    The file holds one line per answer and prefixes each passage with its title, which the
    validation file does not have; both are undone.
    """
    file = fetch("boolq-train")
    shape = re.compile(r".+? -- (?P<passage>.*)\nQuestion: (?P<question>.*)\?\nAnswer:", re.DOTALL)
    documents: dict[str, Row] = {}
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)["doc"]
                documents.setdefault(document["query"], document)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{file}: not the BoolQ request file: {error}") from error
    rows = []
    for query, document in documents.items():
        parts = shape.fullmatch(query)
        if parts is None:
            raise DataError(f"{file}: a query has another shape than passage, question, answer")
        answer = document["choices"][document["gold"]]
        rows.append(_boolq_row(parts["passage"], parts["question"], yes=answer == "yes"))
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


def _boolq_row(passage: str, question: str, *, yes: bool) -> Row:
    question = question.strip().removesuffix("?") + "?"
    return {
        "passage": passage.strip(),
        "question": question[0].upper() + question[1:],
        "label": "1" if yes else "0",
    }


def _lower_first_word(text: str) -> str:
    first, space, rest = text.partition(" ")
    return text if first == "I" else first.lower() + space + rest


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8")


def _arrow(file: Path) -> list[Row]:
    """Rows of an Arrow stream file, the format of the Hugging Face data-set cache."""
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(file.read_bytes()) as stream:
            rows: list[Row] = stream.read_all().to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: not an Arrow stream: {error}") from error
    return rows

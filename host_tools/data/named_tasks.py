"""Named tasks: public data, split for training and testing, with the prompt that MeZO uses.

Prompts follow MeZO (Malladi et al., arXiv 2305.17333, appendix E); it has none for text messages.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from seedtune.runtime.errors import DataError

from . import datasets
from .datasets import Row, normalised


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
    return TaskData("sst2", datasets.movie_sentiment(), datasets.sst2_validation(), spec)


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
    train, test = (balanced(part) for part in split(datasets.sms_messages(), 1000, ["text"]))
    spec = _classification(
        "Message: {text}\nIs this message spam? Yes or No?\n", {"ham": "No", "spam": "Yes"}
    )
    return TaskData("sms-spam", train, test, spec)


def _boolq() -> TaskData:
    spec = _classification("{passage} {question}", {"0": " No", "1": " Yes"})
    return TaskData("boolq", datasets.boolq_train(), datasets.boolq_validation(), spec)


def _cb() -> TaskData:
    rows = datasets.cb_validation()
    train, test = split(rows, len(rows) // 2, ["premise", "hypothesis"])
    spec = _classification(
        'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
        {"0": "Yes", "1": "No", "2": "Maybe"},
    )
    return TaskData("cb", train, test, spec)


def _copa() -> TaskData:
    rows = datasets.copa_validation()
    train, test = split(rows, len(rows) // 2, ["prompt"])
    spec = {
        "kind": "multiple_choice",
        "template": "{prompt}",
        "choice_fields": ["choice1", "choice2"],
        "label_field": "label",
    }
    return TaskData("copa", train, test, spec)


def _chat() -> TaskData:
    rows = datasets.chat_replies()
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
    "boolq": _boolq,
    "cb": _cb,
    "copa": _copa,
    "chat": _chat,
}

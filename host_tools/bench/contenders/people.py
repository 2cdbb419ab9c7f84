"""Twelve people's messages for ``bench senders``, split in time, and what learns from them.

The chats have 22 accounts with 2 000 messages or more. Those below were chosen by reading some
twenty replies from each quarter of an account's time: they keep one way of writing, and have at
least 1 000 replies before the 80 that are reported on. Left out: three accounts that text learning
was developed on (``720840be`` is the named task ``chat``, ``912875dc``, ``4562c16f``) and two that
its small users were looked at with (``0f9fe1f8``, ``a54af4d5``); ``31267496`` (several people),
``549cc1d1`` (1 528 conversations), ``9c569478`` (pasted text in its last quarter), ``2cbc08d8`` and
``d6e03ccc`` (capitals or full stops come and go), ``ed35a50a`` and ``b35b7dec`` (few replies).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from seedtune.runtime.errors import DataError

from ...data.datasets import Row, chat_replies

SENDERS = {
    "afe2b8b4-deb6-4f94-849b-8cc59a6140bd": "capitals, no full stops, 'Ya', long asides; a student",
    "60576dcf-5b39-4420-a850-33ff7d108047": "short, excited, doubled letters and exclamation marks",
    "994e94a5-6ae0-4365-8322-93d359cf1c3c": "whole sentences with full stops; dental school",
    "95677b7a-44c1-499b-8551-b5ccd870c35a": "'Haha yeah', no full stops, jokes about animals",
    "842e34da-02f5-4904-ace0-fe96083a3a1c": "measured, correct sentences; reads a lot",
    "5e5f6bde-85ca-492e-8c7c-dfd1dbf39580": "three dots within sentences; an English major",
    "bdd83751-3d49-4efd-9c25-d68d30f280c9": "lower case, Australian words, money and code",
    "20a5e75d-5e36-4408-9073-bafa4ccd7974": "one capital, no full stop, 'Yeah that's cool'",
    "6dd41fff-8b63-44be-bae7-524ce4ca5796": "brief and even, 'Haha yeah'; piano, finance",
    "70501b84-2434-46da-a0b9-6f1dc3dd62c0": "smileys, 'hahaha', a husband; cooks",
    "efc8c19c-a397-4d25-aa47-3bc40f23fc63": "short lines with capitals, 'Awh', 'Oh, woah'",
    "e33f6772-6401-458f-93ee-c425339262d3": "long replies, 'haha yeah', stories of the outdoors",
}
"""Account to what its text reads like from its first to its last quarter."""

SIZES = (50, 200, 1000)
"""Messages that a method may learn from, those that stand right before the test rows."""
LENGTH = 128
"""Tokens of a row at most: the bound of the exported program."""
TEST_ROWS = 80
LEAST_HELD_OUT = 8
SPEC: dict[str, Any] = {
    "kind": "completion",
    "template": "{before}\n",
    "completion_field": "reply",
    "end": False,  # the results are of the messages' own tokens
}


@dataclass(frozen=True)
class Person:
    """One person's messages, each row (see ``datasets.chat_replies``) after those before it."""

    train: list[Row]
    held_out: list[Row]
    """The last tenth of what may be learned from: for gates and choices."""
    test: list[Row]
    """Reported on, and looked at by nothing else."""


def sender_of(name: str) -> str:
    """The account whose id begins with ``name``.

    Raises:
        DataError: none of the twelve does.
    """
    found = [sender for sender in SENDERS if sender.startswith(name)]
    if len(found) != 1:
        known = ", ".join(sender[:8] for sender in SENDERS)
        raise DataError(f"sender {name!r} is not one of {known}")
    return found[0]


def load_person(sender: str, messages: int) -> Person:
    """The last ``TEST_ROWS`` replies of ``sender``, and the ``messages`` before them.

    Raises:
        DataError: so many are not there.
    """
    rows = chat_replies(sender)
    before, test = rows[:-TEST_ROWS], rows[-TEST_ROWS:]
    if len(before) < messages:
        raise DataError(f"sender {sender}: {len(before)} messages before the test, not {messages}")
    learned = before[len(before) - messages :]
    held_out = min(len(learned), max(LEAST_HELD_OUT, messages // 10))
    first = len(learned) - held_out
    return Person(learned[:first], learned[first:], test)


def batch_size(messages: int) -> int:
    """A fiftieth of the messages, from 4 to 16: who has few needs the more steps."""
    return min(16, max(4, messages // 50))


@dataclass(frozen=True)
class Method:
    """``run_on_person(person, settings)`` of ``module`` gives ``test`` and ``other``, and
    what else is of note."""

    module: str
    start: str
    """The method that is its model, untouched."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Part of every cell's key."""
    by_messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Further ones for so many messages."""
    learns: bool = True

    @property
    def bundle(self) -> bool:
        """Whether it runs the exported program."""
        return self.module == "int4"

    def settings_for(self, messages: int) -> dict[str, Any]:
        return {"seed": 0, **self.settings, **self.by_messages.get(messages, {})}


def _tuned(**tuner: Any) -> Method:
    """The int4 program; what ``tuner`` leaves out is as an app gets it."""
    return Method("int4", "start-int4", {"tuner": tuner})


_LORA: dict[str, Any] = {"lr": 5e-4, "rank": 8, "alpha": 16}
"""Rate and rank of SST-2 in the paper's table 9, as in ``bench quality``."""
_EPOCHS = {50: {"epochs": 3}, 200: {"epochs": 1}, 1000: {"epochs": 1}}
"""Every message is seen once, by LoRA as by the text head; few ones may be seen again."""

METHODS: dict[str, Method] = {
    "start-int4": Method("int4", "start-int4", learns=False),
    "start-fp32": Method("lora", "start-fp32", learns=False),
    "lora": Method("lora", "start-fp32", _LORA, _EPOCHS),
    "text-head": _tuned(),
    "text-head-alone": _tuned(remember=False),
    "head-only": _tuned(terms=False),
    "head-only-alone": _tuned(terms=False, remember=False),
    "per-example": _tuned(estimator="per-example", steps=100, eval_every=50),
}

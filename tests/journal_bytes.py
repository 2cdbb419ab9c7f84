"""Journals as bytes, for tests that damage or craft them."""

from collections.abc import Iterable, Mapping
from typing import Any

from seedtune.runtime.estimators import settings_of
from seedtune.runtime.journal.format import Encoder, Header, Record

SETTINGS = {"estimator": "two-point", "steps": 60, "eval_every": 10, "eps": 0.01}


def header(
    scalar_count: int = 1, *, settings: Mapping[str, Any] = SETTINGS, **changes: Any
) -> Header:
    """Of a run with two-point steps, whose ``settings`` are by name."""
    fields: dict[str, Any] = {
        "bundle_sha256": "b" * 64,
        "values_sha256": "c" * 64,
        "entries": 100,
        "scalar_count": scalar_count,
        "settings": settings_of({**SETTINGS, **settings}).to_dict(),
        "train_sha256": "d" * 64,
        "eval_sha256": None,
        "metric": {"name": "accuracy", "higher_is_better": True},
    }
    return Header(**{**fields, **changes})


def encoded(head: Header, records: Iterable[Record]) -> bytes:
    """A journal's header and records."""
    data = head.encode()
    encoder = Encoder(head.scalar_count, int.from_bytes(data[-4:], "little"), signs=head.signs)
    return data + b"".join(map(encoder.encode, records))

"""Journals as bytes, for tests that damage or craft them."""

from collections.abc import Iterable

from seedtune.runtime.journal.format import Encoder, Header, Record


def encoded(head: Header, records: Iterable[Record]) -> bytes:
    """A journal's header and records."""
    data = head.encode()
    encoder = Encoder(head.scalar_count, int.from_bytes(data[-4:], "little"), signs=head.signs)
    return data + b"".join(map(encoder.encode, records))

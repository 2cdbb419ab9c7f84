"""Steps of signs in a journal: to bytes and back, torn, damaged; and the checksum of many bytes."""

import numpy as np
import pytest
from journal_bytes import encoded
from seedtune.runtime.errors import JournalError
from seedtune.runtime.estimators import settings_of
from seedtune.runtime.journal.crc32c import crc32c
from seedtune.runtime.journal.format import (
    Change,
    Encoder,
    End,
    Evaluation,
    Header,
    JournalDamage,
    Note,
    Record,
    Signs,
    Skip,
    Step,
    decode_header,
    decode_records,
)

COUNT = 165
SIZE = 21


def header(signs: int = COUNT, scalar_count: int = 0) -> Header:
    return Header(
        bundle_sha256="b" * 64,
        values_sha256="c" * 64,
        entries=1000,
        scalar_count=scalar_count,
        signs=signs,
        settings=settings_of(
            {"estimator": "two-point", "steps": 60, "eval_every": 10, "eps": 0.01}
        ).to_dict(),
        train_sha256="d" * 64,
        eval_sha256=None,
        metric={"name": "perplexity", "higher_is_better": False},
    )


def encode(records: list[Record], head: Header | None = None) -> bytes:
    return encoded(head or header(), records)


def decode(data: bytes) -> tuple[list[Record], int]:
    """Records, torn bytes."""
    head, start, crc = decode_header(data, "j")
    placed = list(decode_records(data, head, start, crc, "j"))
    return [p.record for p in placed], len(data) - (placed[-1].end if placed else start)


def some(seed: int, size: int = SIZE) -> Signs:
    return Signs(np.random.default_rng(seed).bytes(size))


RECORDS: list[Record] = [
    Evaluation(4.5, 90.0), some(0), some(1), Skip(1), Note("a remark"), Change("lr", 0.5),
    Signs(bytes(SIZE)), some(2), Signs(b"\xff" * SIZE), Evaluation(4.0, 54.0), some(3),
    End(bytes(range(16)), "done"),
]  # fmt: skip


def test_they_survive_and_take_twelve_bytes_more_than_they_are() -> None:
    assert decode(encode(RECORDS)) == (RECORDS, 0)
    assert len(encode([some(0)])) == len(header().encode()) + SIZE + 12
    whole = 576 * 1152
    steps: list[Record] = [some(seed, whole // 8) for seed in range(2)]
    data = encode(steps, header(whole))
    assert decode(data) == (steps, 0)
    assert 200 * (len(data) - len(header(whole).encode())) / 2 < 20e6


def test_a_step_has_either_numbers_or_signs() -> None:
    for signs, scalars in ((0, 0), (8, 1)):
        with pytest.raises(JournalError, match="either numbers or signs"):
            header(signs, scalars).encode()


@pytest.mark.parametrize("zeros", [False, True])
def test_a_cut_anywhere_leaves_whole_records(zeros: bool) -> None:
    """Also where the file had grown but its last blocks were not written."""
    whole = encode(RECORDS)
    for cut in range(len(header().encode()), len(whole)):
        data = whole[:cut] + bytes(len(whole) - cut + 5 if zeros else 0)
        found, torn = decode(data)
        assert found == RECORDS[: len(found)], cut
        kept = len(encode(found))
        assert torn == len(data) - kept and kept <= cut + zeros
        assert cut < len(encode(RECORDS[: len(found) + 1])) + zeros


def test_every_change_of_every_byte_is_seen() -> None:
    whole, start = encode(RECORDS), len(header().encode())
    for at in range(start, len(whole)):
        for changed in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            bad = bytearray(whole)
            bad[at] ^= changed
            try:
                found, torn = decode(bytes(bad))
            except JournalDamage:
                continue
            assert found == RECORDS[:-1] and torn, (at, changed)


def test_a_wrong_length_is_damage_and_no_torn_tail() -> None:
    """Else every step behind it would go without a word."""
    records = [some(0), some(1), some(2)]
    whole = bytearray(encode(records))
    at = len(encode(records[:1]))
    whole[at + 6] ^= 0x80
    with pytest.raises(JournalDamage, match=rf"damaged at byte {at} \(length of a step\)") as told:
        decode(bytes(whole))
    assert told.value.step == 1


def test_steps_are_of_the_kind_and_the_size_that_the_header_says() -> None:
    with pytest.raises(ValueError, match="a step of 20 bytes of signs, not 21"):
        encode([some(0, 20)])
    with pytest.raises(ValueError, match="a step of 21 bytes of signs, not 0"):
        encode([some(0)], header(0, 1))
    data = header().encode()
    crc = int.from_bytes(data[-4:], "little")
    for forged in (Encoder(1, crc).encode(Step((1.0,))), Encoder(2, crc).encode(Step((1.0, 2.0)))):
        with pytest.raises(JournalDamage):
            decode(data + forged + forged)
    data = header(0, 1).encode()
    crc = int.from_bytes(data[-4:], "little")
    forged = Encoder(0, crc, signs=COUNT).encode(some(0))
    with pytest.raises(JournalDamage):
        decode(data + forged + bytes([1]) * 40)


@pytest.mark.parametrize("size", [8191, 8192, 8193, 82948, 100001])
def test_many_bytes_have_the_checksum_that_they_have_in_parts(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    for before in (0, 0xFFFFFFFF, 0x12345678):
        parts = before
        for first in range(0, size, 4000):  # each goes byte by byte
            parts = crc32c(data[first : first + 4000], parts)
        assert crc32c(data, before) == crc32c(memoryview(data), before) == parts

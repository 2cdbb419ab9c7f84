"""The format: every record survives the way to bytes and back, no damage goes unseen."""

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seedtune.runtime.errors import JournalError
from seedtune.runtime.journal.crc32c import crc32c
from seedtune.runtime.journal.format import (
    MAGIC,
    VERSION,
    Change,
    Encoder,
    End,
    Evaluation,
    Header,
    Note,
    Record,
    Reference,
    Skip,
    Step,
    decode_header,
    decode_records,
)
from seedtune.runtime.settings import Settings


def header(scalar_count: int = 1, **changes: object) -> Header:
    fields: dict[str, object] = {
        "bundle_sha256": "b" * 64,
        "values_sha256": "c" * 64,
        "entries": 100,
        "scalar_count": scalar_count,
        "settings": Settings(eps=0.01).to_dict(),
        "train_sha256": "d" * 64,
        "eval_sha256": None,
        "metric": {"name": "accuracy", "higher_is_better": True},
    }
    return Header(**{**fields, **changes})  # type: ignore[arg-type]


def encode(head: Header, records: list[Record]) -> bytes:
    data = head.encode()
    encoder = Encoder(head.scalar_count, int.from_bytes(data[-4:], "little"))
    return data + b"".join(map(encoder.encode, records))


def decode(data: bytes) -> tuple[Header, list[Record], int]:
    """Header, records, torn bytes."""
    head, start, crc = decode_header(data, "j")
    placed = list(decode_records(data, start, crc, head.scalar_count, "j"))
    return head, [p.record for p in placed], len(data) - (placed[-1].end if placed else start)


float16 = st.floats(width=16, allow_nan=False, allow_infinity=False)
float32 = st.floats(width=32, allow_nan=False)


def records_of(scalar_count: int) -> st.SearchStrategy[Record]:
    scalars = st.tuples(*[float16] * scalar_count)
    return st.one_of(
        st.builds(Step, scalars),
        st.builds(Step, scalars),
        st.builds(Evaluation, float32, float32),
        st.builds(Skip, st.integers(1, 3)),
        st.builds(Change, st.just("lr"), st.floats(1e-9, 1)),
        st.builds(Note, st.text(min_size=1, max_size=60)),
        st.builds(End, st.binary(min_size=16, max_size=16), st.text(max_size=40)),
        st.builds(Reference, float32),
    )


journals = st.sampled_from([1, 1, 2, 16]).flatmap(
    lambda count: st.tuples(st.just(header(count)), st.lists(records_of(count), max_size=30))
)


def test_crc32c_is_the_standard_one():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_upper_half_of_the_crc_tells_all_pairs_of_bytes_apart():
    # The CRC is linear, so one register stands for all.
    assert len({crc32c(struct.pack("<H", word)) >> 16 for word in range(65536)}) == 65536


@given(journals)
def test_round_trip(journal):
    head, records = journal
    assert decode(encode(head, records)) == (head, records, 0)


@given(journals, st.data())
def test_a_cut_journal_gives_a_prefix_of_whole_records(journal, data):
    head, records = journal
    whole = encode(head, records)
    start = len(head.encode())
    cut = data.draw(st.integers(start, len(whole)))
    _, found, torn = decode(whole[:cut])
    assert found == records[: len(found)]
    assert len(encode(head, found)) + torn == cut
    if len(found) < len(records):
        assert len(encode(head, records[: len(found) + 1])) > cut


@settings(max_examples=300)
@given(journals, st.data())
def test_any_changed_byte_is_refused_or_only_costs_the_last_record(journal, data):
    head, records = journal
    whole = encode(head, records)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(st.integers(1, 255))
    bad = whole[:at] + bytes([whole[at] ^ changed]) + whole[at + 1 :]
    try:
        _, found, torn = decode(bad)
    except JournalError as error:
        assert "j:" in str(error) and "\n" not in str(error)
    else:
        assert found == records[:-1] and torn > 0


def test_every_change_of_every_byte_of_a_journal_is_seen():
    records: list[Record] = [
        Evaluation(0.75, 0.5),
        *[Step((float(np.float16(x)),)) for x in np.random.default_rng(0).normal(size=6)],
        Skip(1),
        Change("lr", 1e-4),
        Step((2.0,)),
        End(bytes(range(16)), "done"),
        Step((0.0,)),
        Step((-1.5,)),
    ]
    head = header()
    whole = encode(head, records)
    start = len(head.encode())
    for at in range(len(whole)):
        for changed in range(1, 256) if at >= start else (1, 2, 4, 8, 16, 32, 64, 128):
            bad = bytearray(whole)
            bad[at] ^= changed
            try:
                _, found, torn = decode(bytes(bad))
            except JournalError as error:
                assert "damaged at byte" in str(error) or at < start, error
            else:
                assert found == records[:-1] and torn == 4, (at, changed)


def test_a_header_without_a_readout_has_the_bytes_that_it_always_had():
    """Those that the version before there were readouts wrote; it reads them too."""
    plain = header(2, settings={"lr": 0.5}, extra={"a": [1]})
    assert plain.encode() == (
        b"SEEDTJRN\x01\x00\xa6\x01\x00\x00"
        b'{"bundle_sha256":"' + b"b" * 64 + b'","entries":100,"eval_sha256":null,"extra":{"a":[1]},'
        b'"metric":{"higher_is_better":true,"name":"accuracy"},"parent":null,"scalar_count":2,'
        b'"settings":{"lr":0.5},"snapshot":null,"train_sha256":"' + b"d" * 64 + b'",'
        b'"values_sha256":"' + b"c" * 64 + b'"}[\x83\xeeL'
    )


def test_a_header_with_a_readout_survives():
    head = header(24, shape={"rows": 2, "width": 6, "answers": 2})
    records: list[Record] = [Step(tuple(map(float, range(24)))), Evaluation(0.5, 0.75)]
    assert decode(encode(head, records)) == (head, records, 0)


def test_an_older_header_named_the_shape_after_its_estimator():
    sizes = {"rows": 2, "width": 6, "answers": 2}
    head = header(24, shape=sizes, settings={"estimator": "readout"})
    old = head.encode()[14:-4].replace(b'"shape":', b'"readout":')
    assert b'"readout":{"answers":2,"rows":2,"width":6}' in old
    data = struct.pack("<8sHI", MAGIC, VERSION, len(old)) + old
    found, _, _ = decode_header(data + struct.pack("<I", crc32c(data)), "j")
    assert found == head


@pytest.mark.parametrize("settings", [[], None, "lr", 3, {"estimator": []}])
def test_a_header_whose_settings_make_no_sense_is_malformed(settings):
    with pytest.raises(JournalError, match="header of version 1 is malformed"):
        decode(header(settings=settings).encode())


def test_damage_names_the_offset_of_the_record():
    head, records = header(), [Step((float(i),)) for i in range(10)]
    whole = bytearray(encode(head, records))
    at = len(head.encode()) + 4 * 3
    whole[at + 1] ^= 0x10
    with pytest.raises(JournalError, match=rf"j: damaged at byte {at} "):
        decode(bytes(whole))


@pytest.mark.parametrize("count", [1, 2, 16])
@pytest.mark.parametrize("zeros", [1, 3, 4, 5, 100, 5000])
def test_a_tail_of_zeros_is_torn(count, zeros):
    records: list[Record] = [Step((float(i),) * count) for i in range(10)]
    whole = encode(header(count), records)
    assert decode(whole + bytes(zeros)) == (header(count), records, zeros)


def test_dropped_and_repeated_and_foreign_records_are_seen():
    head, records = header(), [Step((float(i),)) for i in range(50)]
    whole, start = encode(head, records), len(head.encode())
    other = encode(header(entries=101), records)[start + 4 - len(head.encode()) + start :]
    for bad in (
        whole[: start + 40] + whole[start + 44 :],
        whole[: start + 40] + whole[start + 36 :],
        whole[: start + 40] + other[40:],
    ):
        with pytest.raises(JournalError, match="damaged at byte"):
            decode(bad)


def test_a_newer_version_is_refused():
    data = bytearray(header().encode())
    struct.pack_into("<H", data, 8, VERSION + 1)
    struct.pack_into("<I", data, len(data) - 4, crc32c(bytes(data[:-4])))
    with pytest.raises(JournalError, match="version 2 is newer than 1; update seedtune"):
        decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"SEED", b"PK\3\4" + bytes(100)])
def test_what_is_no_journal_is_refused(data):
    with pytest.raises(JournalError, match="not a journal"):
        decode(data)


def test_scalars_that_are_not_finite_cannot_be_recorded():
    with pytest.raises(ValueError, match="finite"):
        Encoder(1, 0).encode(Step((float("inf"),)))


def test_twenty_thousand_two_point_steps_take_at_most_100_kb():
    rng = random.Random(0)
    records: list[Record] = []
    for step in range(20_000):
        if step % 100 == 0:
            records.append(Evaluation(0.7, 0.5))
        records.append(Step((float(np.float16(rng.gauss(0, 20))),)))
    records.append(End(bytes(16), "all 20000 steps done"))
    assert len(encode(header(), records)) <= 100_000

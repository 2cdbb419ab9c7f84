"""The format: every record survives the way to bytes and back, no damage goes unseen."""

import json
import struct
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_bytes import encoded, header
from seedtune.runtime.errors import JournalError
from seedtune.runtime.journal.file import read_journal
from seedtune.runtime.journal.format import (
    MAGIC,
    VERSION,
    Change,
    Encoder,
    End,
    Evaluation,
    JournalDamage,
    Note,
    Record,
    Reference,
    Signs,
    Skip,
    Step,
    decode_header,
    decode_records,
)

COUNT, SIZE = 165, 21
"""Signs of a step, and the bytes that hold them."""


def of_signs(count=COUNT):
    return header(0, signs=count)


def some(seed, size=SIZE):
    return Signs(np.random.default_rng(seed).bytes(size))


def decode(data):
    """Header, records, torn bytes."""
    head, start, crc = decode_header(data, "j")
    placed = list(decode_records(data, head, start, crc, "j"))
    return head, [p.record for p in placed], len(data) - (placed[-1].end if placed else start)


float16 = st.floats(width=16, allow_nan=False, allow_infinity=False)
float32 = st.floats(width=32, allow_nan=False)


def records_of(scalar_count):
    step = st.builds(Step, st.tuples(*[float16] * scalar_count))
    if not scalar_count:
        step = st.builds(Signs, st.binary(min_size=SIZE, max_size=SIZE))
    return st.one_of(
        step,
        step,
        st.builds(Evaluation, float32, float32),
        st.builds(Skip, st.integers(1, 3)),
        st.builds(Change, st.just("lr"), st.floats(1e-9, 1)),
        st.builds(Note, st.text(min_size=1, max_size=60)),
        st.builds(End, st.binary(min_size=16, max_size=16), st.text(max_size=40)),
        st.builds(Reference, float32),
    )


def journal_of(count):
    head = header(count) if count else of_signs()
    return st.tuples(st.just(head), st.lists(records_of(count), max_size=30))


journals = st.sampled_from([1, 1, 2, 16, 0]).flatmap(journal_of)


def test_upper_half_of_the_crc_tells_all_pairs_of_bytes_apart():
    # The CRC is linear, so one register stands for all.
    assert len({crc32(struct.pack("<H", word)) >> 16 for word in range(65536)}) == 65536


@given(journals)
def test_round_trip(journal):
    head, records = journal
    assert decode(encoded(head, records)) == (head, records, 0)


@given(journals, st.data())
def test_a_cut_journal_gives_a_prefix_of_whole_records(journal, data):
    head, records = journal
    whole = encoded(head, records)
    start = len(head.encode())
    cut = data.draw(st.integers(start, len(whole)))
    _, found, torn = decode(whole[:cut])
    assert found == records[: len(found)]
    assert len(encoded(head, found)) + torn == cut
    if len(found) < len(records):
        assert len(encoded(head, records[: len(found) + 1])) > cut


SCALARS: list[Record] = [
    Evaluation(0.75, 0.5), *[Step((float(np.float16(x)),)) for x in (0.1, -0.1, 0.6, 0.1, -0.5)],
    Skip(1), Change("lr", 1e-4), Step((2.0,)), End(bytes(range(16)), "done"), Step((0.0,)),
    Step((-1.5,)),
]  # fmt: skip
SIGNS: list[Record] = [
    Evaluation(4.5, 90.0), some(0), some(1), Skip(1), Note("a remark"), Change("lr", 0.5),
    Signs(bytes(SIZE)), some(2), Signs(b"\xff" * SIZE), End(bytes(range(16)), "done"), some(3),
]  # fmt: skip


BITS = 1, 2, 4, 8, 16, 32, 64, 128


@pytest.mark.parametrize(
    ("head", "records", "changes"),
    [(header(), SCALARS, range(1, 256)), (of_signs(), SIGNS, (*BITS, 255))],
)
def test_every_change_of_every_byte_of_a_journal_is_seen(head, records, changes):
    whole = encoded(head, records)
    start, last = len(head.encode()), len(encoded(head, records[:-1]))
    for at in range(len(whole)):
        for changed in changes if at >= start else BITS:
            bad = bytearray(whole)
            bad[at] ^= changed
            try:
                _, found, torn = decode(bytes(bad))
            except JournalError as error:
                assert "damaged at byte" in str(error) or at < start, error
            else:
                assert found == records[:-1] and torn == len(whole) - last, (at, changed)


def test_a_header_keeps_its_task_s_order_and_its_part():
    """Of whatever fields: a reader that needs an order finds the one that was given."""
    words = {"Zeta": " bad", "10": " good", "9": " so", " a": " it", "é": " was"}
    task = {"spec": {"verbalisers": words}, "on_long": "error"}
    part = {"kind": "answer-head", "labels": [*words], "width": 6}
    head = header(24, shape={"answers": 2}, part=part, task=task)
    records: list[Record] = [Step(tuple(map(float, range(24)))), Evaluation(0.5, 0.75)]
    found, read, torn = decode(encoded(head, records))
    assert (found, read, torn) == (head, records, 0)
    assert list(found.task["spec"]["verbalisers"]) == list(words)
    assert found.encode() == head.encode()


def test_dropped_and_repeated_and_foreign_records_are_seen():
    head, records = header(), [Step((float(i),)) for i in range(50)]
    whole, start = encoded(head, records), len(head.encode())
    other = encoded(header(entries=101), records)[start + 4 - len(head.encode()) + start :]
    for bad in (
        whole[: start + 40] + whole[start + 44 :],
        whole[: start + 40] + whole[start + 36 :],
        whole[: start + 40] + other[40:],
    ):
        with pytest.raises(JournalError, match="damaged at byte"):
            decode(bad)


@pytest.mark.parametrize("version", [0, VERSION - 1, VERSION + 1])
def test_another_version_is_refused_by_name(version):
    data = bytearray(header().encode())
    struct.pack_into("<H", data, 8, version)
    struct.pack_into("<I", data, len(data) - 4, crc32(bytes(data[:-4])))
    message = f"has version {version} of the format, this seedtune reads {VERSION}; use the seed"
    with pytest.raises(JournalError, match=message):
        decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"SEED", b"PK\3\4" + bytes(100)])
def test_what_is_no_journal_is_refused(data):
    with pytest.raises(JournalError, match="not a journal"):
        decode(data)


def test_scalars_that_are_not_finite_cannot_be_recorded():
    with pytest.raises(ValueError, match="finite"):
        Encoder(1, 0).encode(Step((float("inf"),)))


def _mixed(count, steps):
    """Of steps with so many scalars; with signs for 0."""
    rng = np.random.default_rng(count)
    records: list[Record] = []
    for step in range(steps):
        if step % 7 == 3:
            records += [Evaluation(0.5, 0.75), Note("a remark"), Change("lr", 0.5)]
        if step % 11 == 5:
            records.append(Skip(1))
        scalars = rng.normal(size=count).astype(np.float16)
        records.append(Step(tuple(map(float, scalars))) if count else some(step))
    return [*records, End(bytes(range(16)), "done")]


@pytest.mark.parametrize("count", [1, 3, 16, 0])
@pytest.mark.parametrize("behind", [0, 1, 4096])
def test_zeros_from_any_byte_on_are_torn(count, behind):
    """As a crash leaves them where the file had grown but its last blocks were not written."""
    head, records = header(count) if count else of_signs(), _mixed(count, 20)
    whole = encoded(head, records)
    for cut in range(len(head.encode()), len(whole) + 1):
        _, found, torn = decode(whole[:cut] + bytes(len(whole) - cut + behind))
        assert found == records[: len(found)], cut
        kept = len(encoded(head, found))
        # A record that ends in a zero may be taken for torn, never the other way round.
        assert kept <= cut + 1 and torn == len(whole) + behind - kept
        assert len(found) == len(records) or len(encoded(head, records[: len(found) + 1])) >= cut


def test_a_record_cut_by_zeros_is_not_taken_for_another_by_chance():
    """Of 65536 steps, the check of some scalar's first byte and a zero is zero too."""
    head = header()
    data = head.encode()
    crc = int.from_bytes(data[-4:], "little")
    forged = [
        struct.pack("<H", word)
        for word in range(256)
        if crc32(struct.pack("<H", word), crc) >> 16 == 0
    ] or [struct.pack("<H", w) for w in range(65536) if not crc32(struct.pack("<H", w), crc) >> 16]
    for scalar in forged:
        assert decode(data + scalar + bytes(2))[1:] == ([], 4)
        assert decode(data + scalar + bytes(4096))[1:] == ([], 4098)


def test_damage_names_the_last_good_step_and_leaves_what_is_before_it_readable(tmp_path):
    head, records = header(), _mixed(1, 20)
    whole = bytearray(encoded(head, records))
    at = len(encoded(head, records[:12]))
    steps = sum(isinstance(record, (Step, Skip)) for record in records[:12])
    whole[at + 1] ^= 0x10
    path = tmp_path / "journal.bin"
    path.write_bytes(whole)
    message = rf"damaged at byte {at} .*last good step is {steps}.*rewind RUN --to-last-good'"
    with pytest.raises(JournalDamage, match=message):
        read_journal(path)
    found = read_journal(path, tolerate=True)
    assert [placed.record for placed in found.records] == records[:12]
    assert found.damage is not None and (found.damage.position, found.damage.step) == (at, steps)
    assert found.end == at and found.torn_bytes == 0
    assert read_journal(path, until=steps).end == at  # as rewinding there reads it


def crafted(change):
    """A header whose JSON was changed and whose CRC fits again, as an attacker would write it."""
    fields = json.loads(header().encode()[14:-4])
    if callable(change):
        change(fields)
        text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    else:
        text = bytes(change) if isinstance(change, bytes) else b""
    head = struct.pack("<8sHI", MAGIC, VERSION, len(text)) + text
    return head + struct.pack("<I", crc32(head))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(settings=5), "field settings has the wrong type"),
        (lambda f: f["settings"].update(lr=[1]), "field settings.lr has the wrong type"),
        (lambda f: f["settings"].update(lr=10**400), "beyond 64 bits"),
        (lambda f: f.update(scalar_count=2**64 - 1), r"scalar_count is \d+, must be in"),
        (lambda f: f.update(scalar_count=True), "scalar_count has the wrong type"),
        (lambda f: f.update(entries=0), "entries is 0"),
        (lambda f: f.update(entries=2**40), "entries is"),
        (lambda f: f.update(bundle_sha256="x"), "bundle_sha256 is 'x', must be a SHA-256"),
        (lambda f: f.update(eval_sha256=3), "eval_sha256 has the wrong type"),
        (lambda f: f.update(metric=[]), "metric has the wrong type"),
        (lambda f: f["metric"].update(name="\ud83d"), "half a character"),
        (lambda f: f.update(snapshot={"step": 1}), "snapshot.file is missing"),
        (lambda f: f.update(extra=None), "extra has the wrong type"),
        (lambda f: f.update(part=[]), "part has the wrong type"),
        (lambda f: f.update(part={"labels": []}), "part.kind is missing"),
        (lambda f: f.update(extra=[]), "extra has the wrong type"),
        (lambda f: f.update(shape={"rows": 1, "width": 2**31, "answers": 1}), "shape.width is"),
        *[
            (lambda f, odd=odd: f.update(shape={"rows": 1, "width": 6} | odd), "shape.rows")
            for odd in ({"rows": "2"}, {"rows": 6.0}, {"rows": -1}, {"rows": None}, {"rows": True})
        ],
        (lambda f: f.update(surprise=1), "surprise"),
        (lambda f: f.pop("entries"), "entries is missing"),
        (b"[" * 100_000, "JSON nested too deeply"),
        (b"[" * 200 + b"]" * 200, "JSON nested too deeply"),
        (b"[" + b"[]," * 2**20 + b"0]", "more than 1048576 items"),
        (b"[1e999]", "beyond float64"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[1]", "is not an object"),
        (b'"\xff"', "utf-8"),
        (b"{", "malformed"),
    ],
)
def test_crafted_headers_are_refused_before_anything_is_made_from_them(change, message):
    with pytest.raises(JournalError, match=message) as caught:
        decode(crafted(change))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_header_that_could_not_be_read_again_is_not_written():
    with pytest.raises(JournalError, match=r"cannot start a journal .*scalar_count"):
        header(2**25).encode()


@pytest.mark.parametrize("payload", [b"[1]", b"{}", b'{"a":1,"b":2}', b'{"lr":1e999}', b"5"])
def test_a_crafted_change_is_damage(payload):
    data = header().encode()
    word = struct.pack("<H", 0x7C00 | 2 << 8 | len(payload))
    middle = crc32(word, int.from_bytes(data[-4:], "little"))
    crc = struct.pack("<I", crc32(payload, middle))
    with pytest.raises(JournalDamage, match=f"damaged at byte {len(data)} "):
        decode(data + word + struct.pack("<H", middle >> 16) + payload + crc)


def test_a_header_that_json_does_not_know_is_refused_before_it_is_written():
    with pytest.raises(JournalError, match="cannot start a journal with this header"):
        replace(header(), settings={"lr": float("inf")}).encode()


def test_signs_take_twelve_bytes_more_than_they_are():
    whole = 576 * 1152
    head, steps = of_signs(whole), [some(seed, whole // 8) for seed in range(2)]
    data = encoded(head, steps)
    assert decode(data) == (head, steps, 0)
    assert len(data) == len(head.encode()) + 2 * (whole // 8 + 12)


def test_a_step_has_either_numbers_or_signs():
    for signs, scalars in ((0, 0), (8, 1)):
        with pytest.raises(JournalError, match="either numbers or signs"):
            header(scalars, signs=signs).encode()


def test_a_wrong_length_of_signs_is_damage_and_no_torn_tail():
    """Else every step behind it would go without a word."""
    records: list[Record] = [some(0), some(1), some(2)]
    whole = bytearray(encoded(of_signs(), records))
    at = len(encoded(of_signs(), records[:1]))
    whole[at + 6] ^= 0x80
    with pytest.raises(JournalDamage, match=rf"damaged at byte {at} \(length of a step\)") as told:
        decode(bytes(whole))
    assert told.value.step == 1


def test_steps_are_of_the_kind_and_the_size_that_the_header_says():
    with pytest.raises(ValueError, match="a step of 20 bytes of signs, not 21"):
        encoded(of_signs(), [some(0, 20)])
    with pytest.raises(ValueError, match="a step of 21 bytes of signs, not 0"):
        encoded(header(), [some(0)])
    data = of_signs().encode()
    crc = int.from_bytes(data[-4:], "little")
    for forged in (Encoder(1, crc).encode(Step((1.0,))), Encoder(2, crc).encode(Step((1.0, 2.0)))):
        with pytest.raises(JournalDamage):
            decode(data + forged + forged)
    data = header().encode()
    crc = int.from_bytes(data[-4:], "little")
    forged = Encoder(0, crc, signs=COUNT).encode(some(0))
    with pytest.raises(JournalDamage):
        decode(data + forged + bytes([1]) * 40)

"""The journal's format, version 5: bytes to records and back. No files here.

A journal is one header and then records, little-endian, append-only.

Header::

    8 bytes  magic  b"SEEDTJRN"
    u16      version
    u32      length of the JSON
    ...      JSON (UTF-8, no spaces): the fields of ``Header``, the task as it was given
    u32      CRC-32 (as of zlib) of everything before it

Records. ``crc`` below is the CRC-32 of the header (its own CRC field left out) and of all record
words and payloads so far, this record's included; CRC fields themselves are never covered. This
binds every record to all before it: a byte changed, dropped or moved is seen at once.

A step with one scalar, 4 bytes (20 000 of them are 80 000 bytes)::

    f16      scalar, finite
    u16      upper half of crc

A step with S > 1 scalars, 2 S + 4 bytes::

    f16 * S  scalars, finite
    u32      crc

A step of signs, where the header says how many (``signs``; n bytes hold them), n + 12 bytes::

    u16      word of kind 6 with length 4 (see below)
    u16      upper half of the crc after the word
    u32      n
    u8 * n   eight signs a byte, the first in the highest bit, 1 for above 0; the rest zero
    u32      crc

Anything else starts with a float16 that is not a number, which no scalar is. Its bits are
``0x7C00 | sign << 15 | (kind & 3) << 8 | length``, with ``sign = kind >> 2``, 1 <= length <= 255::

    u16      word as above
    u16      upper half of the crc after the word
    ...      payload of ``length`` bytes
    u32      crc

====  ==========  ================================================================================
kind  record      payload
====  ==========  ================================================================================
0     Evaluation  f32 loss, f32 metric: held-out evaluation after the steps so far
1     Skip        u8 reason (``SKIP_REASONS``): a step that left the values alone
2     Change      JSON object of one setting and its value from the next step on
3     Note        UTF-8 text
4     End         16 bytes: SHA-256 of the float32 values, first half; then UTF-8 text: why it ended
5     Reference   f32: batch loss at the start, the loss guard's scale without an evaluation
6     Signs       a step, see above: its length is not the payload's
====  ==========  ================================================================================

The upper half of the CRC of two bytes is a bijection of them (the lower half is not): no change
inside the two bytes of a scalar or of a word goes unseen, whatever the CRC register held.

Torn tails. A crash leaves a prefix of a record, or zeros where a file system had extended the file
but not written it, from any byte on. So an incomplete last record, a last record that is whole in
length but not in CRC, and a record behind whose first bytes or behind which only zeros follow count
as torn: decoding stops before them and says so. A record whose CRC field is among those zeros is
torn even if that is its CRC, as it is of one in 65536: a step cut here is only taken again. Any
other mismatch is damage and is refused with its byte offset and the last step before it.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from ..errors import JournalError
from ..schema import SHA256, ListOf, MapOf, Maybe, Real, Text, Whole, check, parse_json

MAGIC = b"SEEDTJRN"
VERSION = 5
SKIP_REASONS = {1: "loss not finite", 2: "loss jump", 3: "runaway step"}

_NAN = 0x7C00
_PREFIX = struct.Struct("<8sHI")
_MAX_HEADER = 1 << 24
_MAX_SCALARS = 1 << 24
_SIGNS, _SIGNS_WORD = 6, 4
"""Kind of a step of signs, and the length in its word."""
FORGOTTEN = ""
"""In place of a hash of rows, where it was forgotten with their words: it would confirm guesses."""
_DATA_SHA256 = Text(r"[0-9a-f]{64}|", "a SHA-256 in hexadecimal, or empty where it was forgotten")
_HEADER: dict[str, Any] = {
    "bundle_sha256": SHA256,
    "values_sha256": SHA256,
    "entries": Whole(1, 2**31 - 1),
    "scalar_count": Whole(0, _MAX_SCALARS),
    "signs": Whole(0, _MAX_SCALARS),
    "settings": MapOf((str, int, float, bool, type(None))),
    "train_sha256": _DATA_SHA256,
    "eval_sha256": Maybe(_DATA_SHA256),
    "metric": {"name": Text(), "higher_is_better": bool, "rows": Maybe(Whole(1))},
    "snapshot": Maybe(
        {
            "step": Whole(1, 2**47),
            "file": Text(r"[\w-][\w.-]{0,99}", "a plain file name"),
            "sha256": SHA256,
            "reference": Maybe(Real()),
            "evaluations": ListOf(list),
        }
    ),
    "shape": Maybe(MapOf(Whole(0, 2**31 - 1))),
    "part": Maybe({"kind": str}),
    "task": Maybe({"spec": dict, "on_long": str}),
    "extra": dict,
}


class JournalDamage(JournalError):
    """Bytes that no crash explains; the records before them are sound."""

    def __init__(self, name: str, position: int, step: int, detail: str) -> None:
        super().__init__(
            f"{name}: damaged at byte {position} ({detail}); the last good step is {step}: restore "
            "a copy, or go back there ('seedtune journal rewind RUN --to-last-good')"
        )
        self.position = position
        """Offset of the first record that is not sound."""
        self.step = step
        """Steps before it, skipped ones included."""


class Step(NamedTuple):
    """A step: its float16 scalars as Python floats."""

    scalars: tuple[float, ...]


class Signs(NamedTuple):
    """A step: its signs, eight a byte."""

    packed: bytes | memoryview


class Evaluation(NamedTuple):
    """A held-out evaluation of the values after the steps so far."""

    loss: float
    metric: float


class Skip(NamedTuple):
    """A step that changed nothing; a key of ``SKIP_REASONS``."""

    reason: int


class Change(NamedTuple):
    """A setting that differs from the next step on."""

    field: str
    value: Any


class Note(NamedTuple):
    """Free text."""

    text: str


class End(NamedTuple):
    """The loop stopped here; ``digest`` is the first half of the values' SHA-256."""

    digest: bytes
    reason: str


class Reference(NamedTuple):
    """The batch loss that scales the loss guard when nothing was evaluated."""

    loss: float


Record = Step | Signs | Evaluation | Skip | Change | Note | End | Reference


@dataclass(frozen=True)
class Header:
    """What the records belong to."""

    bundle_sha256: str
    values_sha256: str
    """Hash of the bundle's starting values as float32."""
    entries: int
    """K, and the numbers of the part."""
    scalar_count: int
    """S, the float16 numbers of a step; 0 where it has signs."""
    settings: dict[str, Any]
    train_sha256: str
    """Hash of the encoded training examples, which the data order refers to; or ``FORGOTTEN``."""
    eval_sha256: str | None
    """Hash of the encoded held-out examples, None without any; or ``FORGOTTEN``."""
    metric: dict[str, Any]
    """``{"name": str, "higher_is_better": bool}`` and, where it is a share of the held-out rows,
    ``"rows"``: their number."""
    snapshot: dict[str, Any] | None = None
    """Start of a compacted one: ``step, file, sha256, reference, evaluations`` (see compact)."""
    shape: dict[str, int] | None = None
    """What the estimator fixed when the run began (see ``EstimatorSpec``); None: nothing."""
    part: dict[str, Any] | None = None
    """Description of what it moves beside the sensitive values (see ``scoring.part``); None: those
    alone."""
    task: dict[str, Any] | None = None
    """What the run was for: ``spec`` (see ``runtime.tasks``) and ``on_long``; None where
    whoever began it did not say."""
    signs: int = 0
    """Signs of a step, in place of numbers; 0 for none."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Free facts for readers, such as the loss noise that chose eps."""

    @property
    def snapshot_file(self) -> str | None:
        """Name of the snapshot's file, which stands beside the journal; None without one."""
        return None if self.snapshot is None else str(self.snapshot["file"])

    @property
    def first_step(self) -> int:
        """Steps that the snapshot stands for; 0 without one."""
        return 0 if self.snapshot is None else int(self.snapshot["step"])

    def encode(self) -> bytes:
        """The header's bytes, CRC included.

        Raises:
            JournalError: a field is out of what ``decode_header`` accepts.
        """
        fields = dict(self.__dict__)
        try:
            text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
            body = text.encode()
            _header_fields(body)
        except ValueError as error:
            raise JournalError(f"cannot start a journal with this header: {error}") from None
        head = _PREFIX.pack(MAGIC, VERSION, len(body)) + body
        return head + struct.pack("<I", crc32(head))


def _header_fields(body: bytes) -> dict[str, Any]:
    """The JSON of a header, of a form that is safe to work with; ValueError where it is not."""
    fields: dict[str, Any] = parse_json(body, most=_MAX_HEADER)
    check(fields, _HEADER)
    if (fields["scalar_count"] == 0) == (fields["signs"] == 0):
        raise ValueError("a step must have either numbers or signs")
    for item in (fields.get("snapshot") or {}).get("evaluations", ()):
        if len(item) != 3:
            raise ValueError("field snapshot.evaluations must hold [step, loss, metric]")
        for value, kind in zip(item, (Whole(0, 2**47), Real(), Real()), strict=True):
            check(value, kind, "snapshot.evaluations")
    return fields


def signs_bytes(signs: int) -> int:
    """Bytes that so many signs take."""
    return -(-signs // 8)


class Encoder:
    """Turns records into bytes, carrying the CRC from record to record."""

    def __init__(self, scalar_count: int, crc: int, *, signs: int = 0) -> None:
        self.scalar_count, self._signs_bytes = scalar_count, signs_bytes(signs)
        self.crc = crc

    def encode(self, record: Record) -> bytes:
        """Bytes of the record that follows the ones encoded so far."""
        if isinstance(record, Signs):
            return self._signs(record.packed)
        if isinstance(record, Step):
            data = struct.pack(f"<{self.scalar_count}e", *record.scalars)
            if not all(map(math.isfinite, record.scalars)):
                raise ValueError("a step's scalars must be finite")
            self.crc = crc32(data, self.crc)
            if self.scalar_count == 1:
                return data + struct.pack("<H", self.crc >> 16)
            return data + struct.pack("<I", self.crc)
        kind, payload = _payload(record)
        if not 1 <= len(payload) <= 255:
            raise ValueError(f"record payload of {len(payload)} bytes")
        return self._worded(_word(kind, len(payload)), payload)

    def _signs(self, packed: bytes | memoryview) -> bytes:
        if len(packed) != self._signs_bytes or not packed:
            raise ValueError(f"a step of {len(packed)} bytes of signs, not {self._signs_bytes}")
        payload = struct.pack("<I", len(packed)) + packed
        return self._worded(_word(_SIGNS, _SIGNS_WORD), payload)

    def _worded(self, word: bytes, payload: bytes) -> bytes:
        middle = crc32(word, self.crc)
        self.crc = crc32(payload, middle)
        return word + struct.pack("<H", middle >> 16) + payload + struct.pack("<I", self.crc)


def _word(kind: int, length: int) -> bytes:
    return struct.pack("<H", _NAN | (kind >> 2) << 15 | (kind & 3) << 8 | length)


def _payload(record: Record) -> tuple[int, bytes]:
    """Kind and payload of a record that is not a step."""
    match record:
        case Evaluation(loss, metric):
            return 0, struct.pack("<ff", loss, metric)
        case Skip(reason):
            return 1, struct.pack("<B", reason)
        case Change(name, value):
            return 2, json.dumps({name: value}, separators=(",", ":"), allow_nan=False).encode()
        case Note(text):
            return 3, text.encode()
        case End(digest, reason):
            return 4, digest + reason.encode()[:200]
        case Reference(loss):
            return 5, struct.pack("<f", loss)
    raise TypeError(f"not a record: {record!r}")


def _record(kind: int, payload: bytes) -> Record:
    """Inverse of ``_payload``; ValueError and struct.error where the payload makes no sense."""
    match kind:
        case 0:
            return Evaluation(*struct.unpack("<ff", payload))
        case 1:
            (reason,) = struct.unpack("<B", payload)
            return Skip(reason)
        case 2:
            change = parse_json(payload)
            check(change, dict)
            ((name, value),) = change.items()
            return Change(name, value)
        case 3:
            return Note(payload.decode())
        case 4 if len(payload) >= 16:
            return End(payload[:16], payload[16:].decode(errors="replace"))
        case 5:
            return Reference(*struct.unpack("<f", payload))
    raise ValueError(f"record kind {kind}, {len(payload)} bytes")


def decode_header(data: bytes, name: str) -> tuple[Header, int, int]:
    """Header, its length in bytes, and the CRC with which the records start.

    Args:
        data: the journal from its first byte.
        name: what error messages call it.

    Raises:
        JournalError: no journal, truncated or altered inside the header, or another version.
    """
    if len(data) < _PREFIX.size or data[:8] != MAGIC:
        raise JournalError(f"{name}: not a journal, or damaged at byte 0")
    _, version, length = _PREFIX.unpack_from(data)
    end = _PREFIX.size + length
    if length > _MAX_HEADER or end + 4 > len(data):
        raise JournalError(f"{name}: damaged at byte 10: header of {length} bytes is not all there")
    crc = crc32(data[:end])
    if crc != struct.unpack_from("<I", data, end)[0]:
        raise JournalError(f"{name}: damaged at byte 0: header CRC does not match")
    if version != VERSION:
        raise JournalError(
            f"{name}: has version {version} of the format, this seedtune reads {VERSION}; use the "
            "seedtune that wrote it, or tune again"
        )
    try:
        header = Header(**_header_fields(data[_PREFIX.size : end]))
    except (ValueError, TypeError) as error:
        raise JournalError(f"{name}: header is malformed ({error})") from None
    return header, end + 4, crc


class Placed(NamedTuple):
    """A record, the offset just behind it, and the CRC after it."""

    record: Record
    end: int
    crc: int

    @property
    def is_step(self) -> bool:
        """Whether the record takes a step number: a step or a skipped one."""
        return isinstance(self.record, (Step, Signs, Skip))


def decode_records(
    data: bytes, header: Header, start: int, crc: int, name: str
) -> Iterator[Placed]:
    """Yield the whole records from byte ``start`` on; stop before a torn tail.

    Args:
        header, start, crc: as ``decode_header`` gives them.

    Raises:
        JournalDamage: damage that a crash cannot explain.
    """
    scalar_count, steps = header.scalar_count, header.first_step
    step_format = struct.Struct(f"<{scalar_count}e")
    step_size = 4 if scalar_count == 1 else step_format.size + 4
    position, total = start, len(data)
    written = len(data.rstrip(b"\0"))  # from there on, zeros
    packed_size = signs_bytes(header.signs)
    view, signs_word = memoryview(data), int.from_bytes(_word(_SIGNS, _SIGNS_WORD), "little")

    def damage(detail: str) -> JournalError:
        return JournalDamage(name, position, steps, detail)

    while position + 4 <= total:
        word, check = struct.unpack_from("<HH", data, position)
        record: Record
        if word & _NAN == _NAN:
            middle = crc32(data[position : position + 2], crc)
            if word & 0x3FF == 0 or middle >> 16 != check:
                if written <= position + 4:
                    return
                raise damage("CRC")
            size = 8 + (word & 0xFF)
            if word == signs_word and header.signs:
                size += packed_size
                # A wrong length is damage even where the file ends sooner than it says.
                found = data[position + 4 : position + 8]
                if found != packed_size.to_bytes(4, "little")[: len(found)]:
                    if written <= position + 8:
                        return
                    raise damage("length of a step")
            if position + size > total:
                return
            payload = view[position + 4 : position + size - 4]
            after = crc32(payload, middle)
            good = after == struct.unpack_from("<I", data, position + size - 4)[0]
        else:
            size = step_size
            if position + size > total:
                return
            after = crc32(data[position : position + step_format.size], crc)
            if scalar_count == 1:
                good = after >> 16 == check
            else:
                good = after == struct.unpack_from("<I", data, position + size - 4)[0]
        if not good or written <= position + size - (2 if size == 4 else 4):
            if written <= position + size:
                return
            raise damage("CRC")
        try:
            if word == signs_word and header.signs:
                record = Signs(payload[4:])
            elif word & _NAN == _NAN:
                record = _record((word >> 8 & 3) | word >> 15 << 2, bytes(payload))
            elif header.signs:
                raise ValueError("numbers in a run of signs")
            else:
                record = Step(step_format.unpack_from(data, position))
                if not all(map(math.isfinite, record.scalars)):
                    raise ValueError("scalar not finite")
        except (ValueError, struct.error) as error:
            raise damage(str(error)) from None
        position += size
        crc = after
        placed = Placed(record, position, crc)
        steps += placed.is_step
        yield placed

"""CRC-32C (Castagnoli), the checksum of the journal's records.

Reflected polynomial 0x82F63B78, initial value and final exclusive-or 0xFFFFFFFF (RFC 3720,
appendix B.4; check value of ``b"123456789"`` is 0xE3069283). In Python, byte by byte with a table
of 256 entries: a step's record has two to some dozens of protected bytes. The signs of a step are
tens of thousands: those go in numpy, as many rows at once, whose remainders are then joined, since
a CRC register moves over a given number of bytes by a linear map (as in zlib's ``crc32_combine``).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_ROWS = 256
_LONG = 8192
"""Bytes from which rows are worth it."""


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
        entries.append(register)
    return tuple(entries)


_TABLE = _table()
_ARRAY = np.array(_TABLE, np.uint32)


def crc32c(data: bytes | memoryview, previous: int = 0) -> int:
    """CRC-32C of ``data``, or of everything before it and ``data`` if ``previous`` is given.

    ``crc32c(a + b) == crc32c(b, crc32c(a))``, as with ``zlib.crc32``.
    """
    table = _TABLE
    register = previous ^ 0xFFFFFFFF
    if len(data) >= _LONG:
        length = len(data) // _ROWS
        register = _over_rows(data[: _ROWS * length], length, register)
        data = data[_ROWS * length :]
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _over_rows(data: bytes | memoryview, length: int, register: int) -> int:
    """The register after ``_ROWS`` rows of ``length`` bytes, from ``register`` before them."""
    rows = np.frombuffer(data, np.uint8).reshape(_ROWS, length).T.astype(np.uint32)
    registers = np.zeros(_ROWS, np.uint32)
    for column in rows:
        registers = _ARRAY[(registers ^ column) & 0xFF] ^ (registers >> 8)
    moved = _moved_by(length)
    for remainder in registers.tolist():
        register = (
            moved[0][register & 0xFF]
            ^ moved[1][register >> 8 & 0xFF]
            ^ moved[2][register >> 16 & 0xFF]
            ^ moved[3][register >> 24]
            ^ remainder
        )
    return register


@lru_cache(maxsize=8)
def _moved_by(length: int) -> tuple[list[int], ...]:
    """What ``length`` zero bytes make of a register, from the value of each of its four bytes."""
    registers: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)[None] << np.array(
        [[0], [8], [16], [24]], np.uint32
    )
    for _ in range(length):
        registers = _ARRAY[registers & 0xFF] ^ (registers >> 8)
    return tuple(each.tolist() for each in registers)

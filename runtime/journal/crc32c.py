"""CRC-32C (Castagnoli), the checksum of the journal's records.

Reflected polynomial 0x82F63B78, initial value and final exclusive-or 0xFFFFFFFF (RFC 3720,
appendix B.4; check value of ``b"123456789"`` is 0xE3069283). Pure Python: a step's record has two
to some dozens of protected bytes, so a table of 256 entries is fast enough.
"""

_POLYNOMIAL = 0x82F63B78


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
        entries.append(register)
    return tuple(entries)


_TABLE = _table()


def crc32c(data: bytes | memoryview, previous: int = 0) -> int:
    """CRC-32C of ``data``, or of everything before it and ``data`` if ``previous`` is given.

    ``crc32c(a + b) == crc32c(b, crc32c(a))``, as with ``zlib.crc32``.
    """
    table = _TABLE
    register = previous ^ 0xFFFFFFFF
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF

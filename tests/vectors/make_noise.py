"""Write ``noise.json``: test vectors of the noise for implementations in other languages.

Made without numpy's Philox and without ``seedtune``: plain integers, straight from the paper
(Salmon et al., SC 2011) and from the rules in the file. ``python make_noise.py`` rewrites it.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

RULES = {
    "generator": "Philox 4x64, 10 rounds; key = [seed, step << 16 | probe]; "
    "block b (0-based) is that of counter [b + 1, 0, 0, 0]; its 4 words in order",
    "entries": "bit i (least significant first) of word j is entry 64 j + i; 1: +1, 0: -1",
    "first": "the first entries",
    "sha256": "of all entries in order, int8 each",
    "words": "the first raw words, hexadecimal",
}
CASES = [
    (0, 0, 0, 64),
    (0, 0, 0, 1_000),
    (0, 1, 0, 1_000),
    (1, 0, 0, 1_000),
    (0, 0, 1, 1_000),
    (2**64 - 1, 2**48 - 1, 65_535, 4_099),
    (20_240_613, 19_999, 15, 106_000),
    (42, 7, 3, 6_700_000),
    (42, 123_456, 0, 10_000_000),
]
MASK = 2**64 - 1


def philox_words(seed: int, step: int, probe: int) -> Iterator[int]:
    """The raw 64-bit words."""
    block = 0
    while True:
        block += 1
        c0, c1, c2, c3 = block, 0, 0, 0
        k0, k1 = seed, step << 16 | probe
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
            c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
        yield from (c0, c1, c2, c3)


def entries(words: Iterator[int], count: int) -> bytes:
    """All entries in their hashed form."""
    out = bytearray()
    octets = [bytes(1 if byte >> i & 1 else 255 for i in range(8)) for byte in range(256)]
    while len(out) < count:
        for byte in next(words).to_bytes(8, "little"):
            out += octets[byte]
    return bytes(out[:count])


def vectors() -> dict[str, object]:
    """The whole file's content."""
    found = []
    for seed, step, probe, count in CASES:
        data = entries(philox_words(seed, step, probe), count)
        stream = philox_words(seed, step, probe)
        found.append(
            {
                "seed": str(seed),
                "step": str(step),
                "probe": probe,
                "count": count,
                "words": [f"{next(stream):016x}" for _ in range(2)],
                "first": [1 if byte == 1 else -1 for byte in data[:32]],
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    return {"rules": RULES, "vectors": found}


def dump(content: dict[str, object]) -> str:
    """JSON with one vector a line."""
    lines = [
        f' "rules": {json.dumps(content["rules"], indent=2).replace(chr(10), chr(10) + " ")}',
        ' "vectors": [\n  ' + ",\n  ".join(map(json.dumps, content["vectors"])) + "\n ]",
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("noise.json")
    target.write_text(dump(vectors()))

"""Write ``noise.json``: test vectors of the noise for implementations in other languages.

Made without numpy's Philox and without ``seedtune``: plain integers, straight from the paper
(Salmon et al., SC 2011) and from the rules in the file. ``python make_noise.py`` rewrites it.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

RULES = {
    "generator": "Philox 4x64, 10 rounds; key = [seed, step << 16 | probe]; "
    "block b (0-based) is that of counter [b + 1, 0, 0, 0]; its 4 words in order",
    "rademacher": "bit i (least significant first) of word j is entry 64 j + i; 1: +1, 0: -1",
    "gaussian": "16-bit field i (least significant first) of word j is entry 4 j + i; "
    "its upper 12 bits index the table; entries are table / 8192",
    "first": "the first entries; gaussian in units of 1 / 8192",
    "sha256": "of all entries in order: rademacher int8 each, gaussian int16 little-endian each",
    "gaussian_table_upper": "int16 in units of 1 / 8192, entries 2048 to 4095; "
    "entry i below is minus entry 4095 - i",
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


def gaussian_table() -> list[int]:
    """The 4096 quantiles in units of 1 / 8192."""
    normal = NormalDist()
    upper = [normal.inv_cdf((2048 + i + 0.5) / 4096) for i in range(2048)]
    spread = (sum(q * q for q in upper) / 2048) ** 0.5
    integers = [round(8192 * q / spread) for q in upper]
    return [-q for q in reversed(integers)] + integers


def entries(kind: str, words: Iterator[int], count: int) -> bytes:
    """All entries in their hashed form."""
    out = bytearray()
    if kind == "rademacher":
        octets = [bytes(1 if byte >> i & 1 else 255 for i in range(8)) for byte in range(256)]
        while len(out) < count:
            for byte in next(words).to_bytes(8, "little"):
                out += octets[byte]
        return bytes(out[:count])
    table = [q.to_bytes(2, "little", signed=True) for q in gaussian_table()]
    while len(out) < 2 * count:
        word = next(words)
        for i in range(4):
            out += table[word >> (16 * i + 4) & 0xFFF]
    return bytes(out[: 2 * count])


def vectors() -> dict[str, object]:
    """The whole file's content."""
    found = []
    for kind, width in (("rademacher", 1), ("gaussian", 2)):
        for seed, step, probe, count in CASES:
            if kind == "gaussian" and count > 1_000_000:
                count = 1_000_000
            data = entries(kind, philox_words(seed, step, probe), count)
            stream = philox_words(seed, step, probe)
            first = [
                int.from_bytes(data[i : i + width], "little", signed=True)
                for i in range(0, 32 * width, width)
            ]
            found.append(
                {
                    "kind": kind,
                    "seed": str(seed),
                    "step": str(step),
                    "probe": probe,
                    "count": count,
                    "words": [f"{next(stream):016x}" for _ in range(2)],
                    "first": first,
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
    return {"rules": RULES, "gaussian_table_upper": gaussian_table()[2048:], "vectors": found}


def dump(content: dict[str, object]) -> str:
    """JSON with one vector a line."""
    lines = [
        f' "rules": {json.dumps(content["rules"], indent=2).replace(chr(10), chr(10) + " ")}',
        f' "gaussian_table_upper": {json.dumps(content["gaussian_table_upper"])}',
        ' "vectors": [\n  ' + ",\n  ".join(map(json.dumps, content["vectors"])) + "\n ]",  # type: ignore[call-overload]
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("noise.json")
    target.write_text(dump(vectors()))

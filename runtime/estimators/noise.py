"""Seeded noise that is the same, bit for bit, on every processor and in every language.

The stream is Philox 4x64 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) as ``numpy.random.Philox`` numbers it, a raw stream that numpy guarantees:

* key: word 0 is the base seed, word 1 is ``step << 16 | probe``;
* the first block is that of counter value 1, the next that of 2, and so on; a block gives four
  64-bit words, in order;
* bit ``i`` (least significant first) of word ``j`` is entry ``64 * j + i`` of the noise ``z``:
  1 means +1, 0 means -1.

``float32(scale) * z`` is exact, and the sum is rounded to float32 once. Ports check themselves
against ``tests/vectors/noise.json``.

Work goes in blocks that stay in cache: no temporary grows with K.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import TuningError

MAX_STEP = 2**48 - 1
MAX_PROBE = 2**16 - 1

_BLOCK = 1 << 16  # entries; 256 KiB of float32, which fits a second-level cache


def add_noise(
    out: NDArray[np.float32],
    scale: float,
    *,
    seed: int,
    step: int,
    probe: int = 0,
) -> None:
    """Add ``float32(scale) * z`` to ``out`` (float32 ``[K]``) in place."""
    perturb(out, out[None, :], (scale,), seed=seed, step=step, probe=probe)


def perturb(
    values: NDArray[np.float32],
    rows: NDArray[np.float32],
    scales: Sequence[float],
    *,
    seed: int,
    step: int,
    probe: int = 0,
) -> None:
    """Write ``values + float32(scales[r]) * z`` into ``rows[r]``, with one ``z`` for all rows.

    Args:
        values: float32 ``[K]``.
        rows: float32 ``[len(scales), K]``, overwritten.
        scales: one multiplier a row.
        seed: base seed, 0 to 2**64 - 1.
        step: step number, 0 to 2**48 - 1.
        probe: number of the direction within the step, 0 to 65535.
    """
    scaled = [_signs() * np.float32(scale) for scale in scales]
    room = np.empty((_BLOCK // 8, 8), dtype=np.float32)
    flat = room.reshape(-1)
    for start, stop, octets in _blocks(len(values), seed, step, probe):
        noise = flat[: stop - start]
        for row, table in zip(rows, scaled, strict=True):
            # "clip" skips a bounds check that cannot fail and lets numpy write into the room.
            np.take(table, octets, axis=0, out=room[: len(octets)], mode="clip")
            np.add(values[start:stop], noise, out=row[start:stop])


def _blocks(
    count: int, seed: int, step: int, probe: int
) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yield ``(start, stop, octets)`` for entries ``start`` to ``stop``, in order."""
    if not 0 <= seed < 2**64:
        raise TuningError(f"seed {seed} is outside 0 to 2**64 - 1")
    if not (0 <= step <= MAX_STEP and 0 <= probe <= MAX_PROBE):
        raise TuningError(f"noise of step {step}, probe {probe} is outside the stream")
    stream = np.random.Philox(key=np.array([seed, step << 16 | probe], dtype=np.uint64))
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        words = stream.random_raw((stop - start + 63) // 64)
        octets = words.astype("<u8", copy=False).view(np.uint8)  # 8 entries each
        yield start, stop, octets[: (stop - start + 7) // 8]


@lru_cache
def _signs() -> NDArray[np.float32]:
    """The eight entries of each octet, float32 ``[256, 8]``."""
    octets = np.arange(256, dtype=np.uint8)[:, None]
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    return bits.astype(np.float32) * np.float32(2) - np.float32(1)

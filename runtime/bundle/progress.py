"""How far the check of a bundle is, for whoever waits for it."""

import hashlib
from collections.abc import Callable
from typing import IO

Progress = Callable[[int, int], None]
"""Called with the bytes checked so far and how many there are."""
CHUNK = 1 << 20
"""Bytes that are checked from one call to the next, at most."""


class ProgressFailed(Exception):
    """Carries what a callback raised past all that would take it for a damaged file."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def counting(progress: Progress | None, total: int) -> Callable[[int], None]:
    """What to call with the bytes of each piece once it is checked; ``progress`` hears their sum.

    It hears of 0 bytes at once, so that it can show what is waited for.
    """
    done = 0

    def checked(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            try:
                progress(done, total)
            except Exception as error:
                raise ProgressFailed(error) from error

    checked(0)
    return checked


def hash_pieces(
    stream: IO[bytes], checked: Callable[[int], None], copy: IO[bytes] | None = None
) -> str:
    """SHA-256 (hex) of all that ``stream`` holds, which also goes into ``copy``.

    Args:
        checked: called with the bytes of each piece, of ``CHUNK`` at most, once it is hashed.
    """
    digest = hashlib.sha256()
    while piece := stream.read(CHUNK):
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
        checked(len(piece))
    return digest.hexdigest()


def part_of(progress: Progress | None, which: int, parts: int) -> Progress | None:
    """For pass number ``which`` of ``parts`` over the same bytes."""
    if progress is None:
        return None
    return lambda done, total: progress(which * total + done, parts * total)
